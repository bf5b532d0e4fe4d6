import torch

from polyspace.data.moving import motion_of, moving_clips, normalise


def test_the_same_arguments_give_the_same_clips_and_a_prefix_of_more():
    a, b = moving_clips(6, 3, size=16, block=4), moving_clips(8, 3, size=16, block=4)
    assert torch.equal(a.video[:4], b.video[:4]) and torch.equal(a.label[:4], b.label[:4])
    assert not torch.equal(moving_clips(4, 4, size=16).video, moving_clips(4, 3, size=16).video)


def test_every_class_shows_the_same_places_in_another_order():
    """Without noise, a clip of a whole period holds the same set of frames whatever its class."""
    whole = {}
    for label in range(6):
        seed = 0
        while True:  # the scene's draws don't depend on the label, only the label's own draw does
            clip = moving_clips(1, seed, frames=13, size=24, noise=0.0)
            if clip.label.item() == label:
                break
            seed += 1
        frames = {f.numpy().tobytes() for f in clip.video[0]}
        whole[label] = len(frames)
        step = [not torch.equal(clip.video[0, t], clip.video[0, t + 1]) for t in range(12)]
        assert all(step)
    assert set(whole.values()) == {13}


def test_no_object_means_no_motion_and_more_objects_more():
    still = moving_clips(8, 0, size=24, objects=(0, 0), noise=0.0)
    busy = moving_clips(8, 0, size=24, objects=(3, 3), noise=0.0)
    assert motion_of(still.video).max() == 0
    assert motion_of(busy.video).min() > 0
    assert (busy.objects == 3).all()


def test_masks_cover_what_moves():
    clip = moving_clips(4, 1, size=24, noise=0.0, keep_mask=True)
    changed = (clip.video[:, 1:].float() - clip.video[:, :-1].float()).abs().amax(-1) > 40
    assert (clip.mask.flatten(1).amax(1) == clip.objects).all()
    either = (clip.mask[:, 1:] | clip.mask[:, :-1]) > 0
    near = torch.nn.functional.pad(either.float().flatten(0, 1)[:, None], (1, 1, 0, 0), mode="circular")
    grown = torch.nn.functional.max_pool2d(near, 3, 1, (1, 0))[:, 0] > 0
    assert (changed.flatten(0, 1) & ~grown).sum() == 0


def test_normalised_clips_are_near_zero_mean():
    x = normalise(moving_clips(20, 0, size=16).video)
    assert x.dtype == torch.float32 and x.mean().abs() < 1 and 0.3 < x.std() < 2
