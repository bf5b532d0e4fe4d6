"""Official layouts: counts, class order, missing clips, and annotations that are wrong."""

import json
from pathlib import Path

import pytest

from polyspace.data import DATASETS, build_dataset
from polyspace.data.hmdb51 import CLASSES, source_video
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.utils.errors import UserError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def counts(name, root, split, **options):
    data = build_dataset(name, root, split, **options)
    return len(data.records) + len(data.missing), data


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_hmdb51_counts_classes_and_ids(real_data, fold):
    splits = real_data / "hmdb51_full_splits" / "testTrainMulti_7030_splits"
    official = [line.split()[-1] for line in (splits.parent / "label_map_mmaction2.txt").read_text().splitlines()]
    assert official == CLASSES
    for split, expected in (("train", 3570), ("test", 1530), ("validation", 1530)):
        total, data = counts("hmdb51", real_data / "hmdb51", split, fold=fold, annotations=splits)
        assert total == expected and len(data.classes) == 51
        for record in data.records:
            assert data.classes[record.label] == record.path.parent.name


def test_hmdb51_ids_are_official_even_where_few_classes_are_present(real_data):
    data = build_dataset("hmdb51", real_data / "hmdb51", "train")
    assert {r.path.parent.name: r.label for r in data.records} == {"golf": 15, "shoot_bow": 35, "wave": 50}


def test_hmdb51_clips_of_one_film_share_a_group():
    assert source_video("Return_of_the_King_wave_u_nm_np1_fr_med_3.avi", "wave") == "Return_of_the_King"
    assert source_video("a(b)+c!_wave_f_cm_np2_ba_bad_11.avi", "wave") == "a(b)+c!"


def test_diving48_counts_and_the_class_that_never_occurs(real_data, tmp_path):
    touch(tmp_path / "rgb" / "-mmq0PT-u8k_00155.mp4")
    test_id = json.loads((real_data / "diving48" / "Diving48_V2_test.json").read_text())[0]["vid_name"]
    touch(tmp_path / "rgb" / f"{test_id}.mp4")
    for split, expected in (("train", 15027), ("test", 1970)):
        total, data = counts("diving48", tmp_path, split, annotations=real_data / "diving48")
        assert total == expected and len(data.classes) == 48 and len(data.records) == 1
    names = (real_data / "diving48" / "label_map_mmaction2.txt").read_text().split()
    assert [c.lower() for c in data.classes] == [n.lower() for n in names]


def test_ssv2_counts_and_templates(real_data):
    total, data = counts("ssv2", real_data / "ssv2", "validation")
    names = (real_data / "ssv2" / "annotations" / "sthv2_label_map_mmaction2.txt").read_text().splitlines()
    assert total == 24777 and data.classes == names
    (clip,) = data.records
    assert (clip.id, clip.label, clip.text) == ("166766", 57, "poking green frog doll so that it falls over")


def test_ssv2_test_list_has_labels_only_with_answers(real_data, tmp_path):
    touch(tmp_path / "20bn-something-something-v2" / "1420.webm")
    total, data = counts("ssv2", tmp_path, "test", annotations=real_data / "ssv2" / "annotations")
    assert total == 27157 and data.records[0].label is None and data.notes
    for name in ("labels", "test"):
        source = real_data / "ssv2" / "annotations" / f"something-something-v2-{name}.json"
        (tmp_path / f"{name}.json").write_text(source.read_text())
    (tmp_path / "test-answers.csv").write_text("1420;Closing something\n")
    assert build_dataset("ssv2", tmp_path, "test").records[0].label == 5


@pytest.mark.parametrize("name", [n for n in DATASETS if n != "videofolder"])
def test_generated_layouts_are_read_and_splits_agree_and_do_not_overlap(tmp_path, name):
    generate(SyntheticConfig(layout=name, out=tmp_path, clips=12, classes=3, height=16, width=16))
    train, held = (build_dataset(name, tmp_path, split) for split in ("train", "validation"))
    assert train.classes == held.classes and not train.missing and not held.missing
    assert len(train.records) + len(held.records) == 12
    assert not {r.id for r in train.records} & {r.id for r in held.records}
    assert {r.label for r in train.records} == {0, 1, 2}


def test_folders_are_classes_and_nothing_is_passed_over(tmp_path):
    for name in ("b/1.mp4", "a/x/2.avi", "a/note.txt", "loose.mkv", "a/odd.bin", ".hidden/3.mp4"):
        touch(tmp_path / name)
    data = build_dataset("videofolder", tmp_path, "train")
    assert data.classes == ["a", "b"]
    found = {r.id: r.label for r in data.records}
    assert found == {"a/odd.bin": 0, "a/x/2.avi": 0, "b/1.mp4": 1, "loose.mkv": None}
    with pytest.raises(UserError, match="has no validation/ folder"):
        build_dataset("videofolder", tmp_path, "validation")


def test_split_folders_share_their_classes(tmp_path):
    for name in ("train/b/1.mp4", "train/a/2.mp4", "test/b/3.mp4", "test/c/4.mp4"):
        touch(tmp_path / name)
    held = build_dataset("videofolder", tmp_path, "validation")
    assert held.classes == ["a", "b", "c"] and {r.label for r in held.records} == {1, 2} and held.notes


def test_a_list_gives_labels_texts_and_splits(tmp_path):
    touch(tmp_path / "v" / "1.mp4")
    rows = "path,label,text,split\nv/1.mp4,dog,a dog runs,train\nv/2.mp4,cat,,validation\n"
    (tmp_path / "list.csv").write_text(rows)
    data = build_dataset("videofolder", tmp_path, "train", list_file=tmp_path / "list.csv")
    assert data.classes == ["cat", "dog"] and data.records[0].label == 1 and data.records[0].text == "a dog runs"
    with pytest.raises(UserError, match="none of the 1 clips"):
        build_dataset("videofolder", tmp_path, "validation", list_file=tmp_path / "list.csv")


@pytest.mark.parametrize("bad", ["../secret.mp4", "/etc/passwd", "a/../../x.mp4", "..\\x.mp4"])
def test_no_annotation_points_outside_root(tmp_path, bad):
    touch(tmp_path.parent / "secret.mp4")
    (tmp_path / "list.csv").write_text(f"path\n{bad}\n")
    with pytest.raises(UserError, match="outside --root"):
        build_dataset("videofolder", tmp_path, "train", list_file=tmp_path / "list.csv")
    if bad.startswith("/"):
        return  # below rgb/ this is a relative name
    (tmp_path / "Diving48_vocab.json").write_text('[["a","b","c","d"]]')
    (tmp_path / "Diving48_V2_train.json").write_text(json.dumps([{"vid_name": bad, "label": 0}]))
    with pytest.raises(UserError, match="outside --root"):
        build_dataset("diving48", tmp_path, "train")


def test_faults_name_the_culprit(tmp_path):
    with pytest.raises(UserError, match="--dataset hmdb15 is unknown; did you mean 'hmdb51'"):
        build_dataset("hmdb15", tmp_path, "train")
    with pytest.raises(UserError, match="--split val is unknown"):
        build_dataset("hmdb51", tmp_path, "val")
    with pytest.raises(UserError, match=r"--root .*nowhere is not a folder"):
        build_dataset("hmdb51", tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"no \*_test_split1.txt"):
        build_dataset("hmdb51", tmp_path, "train")
    with pytest.raises(UserError, match="--fold has no meaning for --dataset ssv2"):
        build_dataset("ssv2", tmp_path, "train", fold=2)
    folder = tmp_path / "testTrainMulti_7030_splits"
    touch(folder / "wave_test_split1.txt").write_text("a.avi 1\nb.avi\n")
    with pytest.raises(UserError, match=r"wave_test_split1\.txt line 2"):
        build_dataset("hmdb51", tmp_path, "train")
    (folder / "wave_test_split1.txt").write_text("a.avi 1\na.avi 1\n")
    with pytest.raises(UserError, match="listed twice"):
        build_dataset("hmdb51", tmp_path, "train")
    (folder / "wave_test_split1.txt").write_text("a.avi 0\n")
    with pytest.raises(UserError, match="train split lists no clip"):
        build_dataset("hmdb51", tmp_path, "train")
