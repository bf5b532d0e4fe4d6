"""`train-converter --stream`: the same converters as from a store, and a killed pass that goes on."""

import shlex

import pytest
import torch

from polyspace.data import build_dataset, featurize, synthetic
from polyspace.models.spaces.converters import load_converters
from polyspace.train import train_converter
from polyspace.train.alignment import converter_source, pairs
from polyspace.train.alignment.gathering import Gatherer
from polyspace.utils.errors import UserError


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory, checkpoints):
    root = tmp_path_factory.mktemp("stream") / "data"
    made = f"--layout hmdb51 --out {root} --clips 20 --classes 2 --height 32 --width 32 --workers 1"
    assert synthetic.main(shlex.split(made)) == 0
    for clip in build_dataset("hmdb51", root, "train").records[-2:]:  # the whole of a stream's last batch
        clip.path.write_bytes(clip.path.read_bytes()[:200])
    places = " ".join(f"{name}={folder}" for name, folder in checkpoints.items())
    return f"--dataset hmdb51 --root {root} --checkpoint {places} --frames 4 --workers 0 --max_failed 0.2 --strict"


def converters(source, folder, *flags):
    line = f"--stream {source} --epochs 2 --batch 4 --save_dir {folder} {' '.join(flags)}"
    assert train_converter.main(shlex.split(line)) == 0
    bank, about = load_converters(folder / "converters_ep2.pt")
    return bank.state_dict(), about


def test_a_stream_gives_the_converters_that_a_store_gives(source, tmp_path):
    streamed, about = converters(source, tmp_path / "s", "--kind ridge")
    assert featurize.main(shlex.split(f"{source} --split train --batch 2 --out {tmp_path / 'f'}")) == 0
    line = f"--features {tmp_path / 'f' / 'features_hmdb51_train.json'} --kind ridge --epochs 2 --save_dir {tmp_path}"
    assert train_converter.main(shlex.split(line)) == 0
    stored, other = load_converters(tmp_path / "converters_ep2.pt")
    for name, tensor in stored.state_dict().items():
        torch.testing.assert_close(streamed[name], tensor, rtol=1e-3, atol=1e-4)
    counts = [{k: a["held_out"]["vivit"][k] for k in ("fitted_on", "held_out")} for a in (about, other)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("tokens", [(), ("--tokens", "--tokens_per_clip 3", "--rows 40")])
def test_a_killed_stream_goes_on_where_it_was_written_down_and_ends_in_the_same_bits(
    source, tmp_path, monkeypatch, tokens
):
    whole, about = converters(source, tmp_path / "whole", *tokens)
    assert not list((tmp_path / "whole").glob("stream-*"))
    monkeypatch.setattr(converter_source, "SAVE_EVERY_S", 0.0)
    add, blocks, taken = Gatherer.add, [], pairs.stream_blocks

    def counting(self, block):
        if len(blocks) == 4:
            raise Killed
        blocks.append(block.done)
        add(self, block)

    monkeypatch.setattr(Gatherer, "add", counting)
    with pytest.raises(Killed):
        converters(source, tmp_path / "cut", *tokens)
    monkeypatch.setattr(Gatherer, "add", add)
    starts = []

    def noting(*given):
        starts.append(given[-1])
        return taken(*given)

    monkeypatch.setattr(converter_source, "stream_blocks", noting)
    again, about_again = converters(source, tmp_path / "cut", *tokens)
    assert starts == [blocks[-1]] and starts[0] >= 4
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert again.keys() == whole.keys() and about_again["held_out"] == about["held_out"]
    assert not list((tmp_path / "cut").glob("stream-*"))


def test_a_run_killed_behind_its_pass_counts_no_unreadable_clip_twice(source, tmp_path, monkeypatch, capsys):
    def killed(*_):
        raise Killed

    monkeypatch.setattr(train_converter, "fit_bank", killed)
    loaded, load = [], pairs.forward_of
    monkeypatch.setattr(pairs, "forward_of", lambda *given: loaded.append(1) or load(*given))
    for _ in range(3):
        with pytest.raises(Killed):
            converters(source, tmp_path)
        assert capsys.readouterr().out.count("  failed: ") == 2
    assert len(loaded) == 4  # the backbones, by the first run only


def test_a_pass_with_too_many_unreadable_clips_is_not_kept(source, tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(UserError, match="max_failed"):
            converters(source.replace("--max_failed 0.2", "--max_failed 0"), tmp_path)
        assert not list(tmp_path.glob("stream-*"))
