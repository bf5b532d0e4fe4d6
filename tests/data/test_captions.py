"""What is said of generated clips is what they show."""

import torch

from polyspace.data.captions import COLOURS, attribute_names, attributes, caption_clips, colour_numbers, motion_words
from polyspace.data.moving import moving_clips
from polyspace.data.render import SHAPES


def test_a_caption_names_every_object_from_top_to_bottom_and_the_motion():
    clips = moving_clips(40, 3, frames=12, size=16)
    for i, text in enumerate(caption_clips(clips)):
        count = int(clips.objects[i])
        order = clips.height[i, :count].argsort()
        words = [f"{COLOURS[colour_numbers(clips.colour)[i, k]]} {SHAPES[clips.shape[i, k]]}" for k in order]
        places = [text.index(word) for word in words]
        assert text.count(" and ") == count - 1 and places == sorted(places)
        assert text.endswith(motion_words(int(clips.label[i])))


def test_colours_by_hand():
    colour = torch.tensor([[[0.9, 0.4, 0.4], [0.9, 0.9, 0.4], [0.3, 0.3, 0.3], [1.0, 1.0, 1.0]]])
    assert [COLOURS[k] for k in colour_numbers(colour)[0]] == ["red", "yellow", "grey", "white"]


def test_the_named_colour_is_in_the_picture():
    clips = moving_clips(30, 5, frames=12, size=32, objects=(1, 1), noise=0.0, keep_mask=True)
    for video, mask, colour in zip(clips.video, clips.mask, clips.colour[:, 0], strict=True):
        inside = video[mask == 1].double().mean(0) / 255
        assert (inside - colour).abs().max() < 0.15  # rims are mixed with the ground


def test_motion_words_tell_speed_and_side():
    assert motion_words(0) == "moving slowly to the right" and motion_words(3) == "moving quickly to the left"


def test_attributes_hold_what_captions_name():
    clips = moving_clips(60, 1, frames=12, size=16)
    names = attribute_names()
    for text, row in zip(caption_clips(clips), attributes(clips), strict=True):
        said = text.replace("the left", "").replace("the right", "").split()
        assert {n for n, on in zip(names, row.tolist(), strict=True) if on} == {n for n in names if n in said}


def test_facts_do_not_change_the_pictures():
    one, two = moving_clips(4, 9, size=16), moving_clips(4, 9, size=16, keep_mask=True)
    assert torch.equal(one.video, two.video) and one.shape.shape == (4, 2) and one.colour.shape == (4, 2, 3)
