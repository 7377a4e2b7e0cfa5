"""Detectors in files: our own, detectron2's, and pickles that are something else."""

import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from figureground.detectors import load, save
from figureground.detectors.pickled import read_pickle
from figureground.errors import ConfigError, WeightsError
from tests.detectors.official import SMALL, detectron2_state, small

IMAGES = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


class TestOwn:
    @pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
    def test_a_detector_comes_back(self, kind, tmp_path):
        model = small(kind)
        save(tmp_path / "a.safetensors", model)
        again = load(tmp_path / "a.safetensors")
        assert type(again) is type(model)
        assert again.config == model.config
        assert same(again.state_dict(), model.state_dict())
        assert not again.training
        save(tmp_path / "b.safetensors", again)
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    def test_some_of_its_configuration_may_change(self, tmp_path):
        save(tmp_path / "a.safetensors", small())
        again = load(tmp_path / "a.safetensors", max_detections=7, rpn={"test": 50})
        assert again.config.rpn.test == 50
        assert len(again(IMAGES)[0]) == 7
        with pytest.raises(ConfigError, match="Did you mean 'max_detections'"):
            load(tmp_path / "a.safetensors", max_detection=7)
        with pytest.raises(WeightsError, match=r"a.safetensors does not fit: of another shape: boxes.*1024"):
            load(tmp_path / "a.safetensors", box_head={"width": 1024})

    def rewritten(self, folder, metadata):
        save(folder / "a.safetensors", small())
        save_file(load_file(folder / "a.safetensors"), folder / "b.safetensors", metadata)
        with pytest.raises(WeightsError) as caught:
            load(folder / "b.safetensors")
        return str(caught.value)

    def test_files_of_something_else(self, tmp_path):
        with pytest.raises(WeightsError, match=r"No detector at .*nowhere"):
            load(tmp_path / "nowhere.safetensors")
        (tmp_path / "x.safetensors").write_bytes(b"<html>404</html>" * 9)
        with pytest.raises(WeightsError, match="cannot be read as a detector"):
            load(tmp_path / "x.safetensors")
        assert "not those of a detector" in self.rewritten(tmp_path, None)
        key = "figureground_detector"
        assert "does not say which" in self.rewritten(tmp_path, {key: "{"})
        assert "does not say which" in self.rewritten(tmp_path, {key: '{"version": 1, "config": {"detector": "yolo"}}'})
        later = json.dumps({"version": 2, "config": {"detector": "new"}})
        assert "version 2; this program reads version 1" in self.rewritten(tmp_path, {key: later})


class TestDetectron2:
    @pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
    @pytest.mark.parametrize("suffix", ["pth", "pkl"])
    def test_an_official_file(self, kind, suffix, tmp_path):
        model, path = small(kind, categories=3), tmp_path / f"model.{suffix}"
        state = detectron2_state(model)
        state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(3, 4)
        if suffix == "pth":
            torch.save({"model": state, "trainer": {"iteration": 9}}, path)
        else:
            arrays = {name: value.numpy() for name, value in state.items()}
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
        again = load(path, **SMALL)
        assert again.config.detector == kind
        assert again.config.categories == 3
        assert same(again.state_dict(), model.state_dict())
        assert not again.training

    def fails(self, state, folder):
        torch.save({"model": state}, folder / "model.pth")
        with pytest.raises(WeightsError) as caught:
            load(folder / "model.pth", **SMALL)
        return str(caught.value)

    def test_files_that_do_not_fit(self, tmp_path):
        state = detectron2_state(small())
        lacking = {name: value for name, value in state.items() if name != "proposal_generator.rpn_head.conv.bias"}
        assert "missing: rpn.conv.bias." in self.fails(lacking, tmp_path)
        assert "unexpected: roi_heads.extra." in self.fails({**state, "roi_heads.extra": torch.ones(1)}, tmp_path)
        wrong = {**state, "backbone.bottom_up.res2.0.conv1.weight": torch.ones(64, 64, 1, 1)}
        assert "trunk.layer1.0.conv1.weight (64, 64, 1, 1) instead of (64, 64, 3, 3)" in self.fails(wrong, tmp_path)
        blue = {**state, "pixel_mean": torch.tensor([103.53, 116.28, 123.675])}
        assert "this program normalises RGB" in self.fails(blue, tmp_path)
        assert "holds no detector" in self.fails({"stem.conv1.weight": torch.ones(1)}, tmp_path)

    def test_a_file_that_holds_more_than_tensors(self, tmp_path):
        torch.save({"model": detectron2_state(small()), "hook": Forbidden()}, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load(tmp_path / "model.pth")


class Forbidden:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",) if hasattr(self, "marker") else ("true",)


class TestPickles:
    def read(self, content, folder):
        (folder / "a.pkl").write_bytes(content)
        return read_pickle(folder / "a.pkl")

    def refused(self, content, folder):
        with pytest.raises(WeightsError) as caught:
            self.read(content, folder)
        return str(caught.value)

    @pytest.mark.parametrize("renamed", [False, True])
    @pytest.mark.parametrize("protocol", range(6))
    def test_arrays(self, protocol, renamed, tmp_path):
        content = {
            "model": {
                "float": np.arange(6, dtype=np.float32).reshape(2, 3),
                "half": np.arange(3, dtype=np.float16),
                "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
                "big-endian": np.arange(3, dtype=">i4"),
                "empty": np.zeros((0, 4), np.float32),
                "nothing": np.array(5),
                "flags": np.array([True, False]),
                "number": np.float64(0.5),
            },
            "list": [1, 2.5, "text", b"\xff\x00", None, True, (3,)],
        }
        written = pickle.dumps(content, protocol=protocol)
        if renamed:  # as NumPy 1 spells them; where lengths are written before names they are of one byte
            for name in (b"multiarray", b"numeric"):
                modern, old = b"numpy._core." + name, b"numpy.core." + name
                written = written.replace(bytes([len(modern)]) + modern, bytes([len(old)]) + old)
                written = written.replace(b"c" + modern, b"c" + old)
            written = re.sub(rb"\x95.{8}", b"", written, flags=re.DOTALL) if protocol >= 4 else written
            assert b"_core" not in written
        found = self.read(written, tmp_path)
        assert found["list"] == content["list"]
        for name, value in content["model"].items():
            assert np.array_equal(found["model"][name], value), name
            if isinstance(value, np.ndarray):
                assert found["model"][name].dtype == value.dtype.newbyteorder("=")

    def test_python_2(self, tmp_path):
        """Texts, and the bytes of an array, in the strings of Python 2."""
        values = np.array([1.5, -2.0], np.float32)
        written = (
            b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
            b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + values.tobytes() + b"tbs."
        )
        found = self.read(written, tmp_path)
        assert list(found) == ["w"]
        assert np.array_equal(found["w"], values)

    @pytest.mark.parametrize("protocol", range(6))
    def test_a_pickle_that_runs_a_command(self, protocol, tmp_path):
        evil = Forbidden()
        evil.marker = tmp_path / "ran"
        written = pickle.dumps({"model": {"w": np.ones(3), "x": evil}}, protocol=protocol)
        message = self.refused(written, tmp_path)
        assert "a.pkl names posix.system" in message
        assert not (tmp_path / "ran").exists()
        pickle.loads(written)  # it would have
        assert (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("written", "complaint"),
        [
            (b"cbuiltins\neval\n(U\x011tR.", "names builtins.eval"),
            (b"cnumpy\nload\n(U\x01xtR.", "names numpy.load"),
            (b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.all\x93.", "names numpy.ndarray.all"),
            (b"c_codecs\nencode\n(U\x04textU\x04zliptR.", "encoding 'zlip'"),
            (b"cnumpy\ndtype\n(U\x01Otr.", "cannot be read as a pickle"),
            (b"cnumpy\ndtype\n(U\x01OtR.", "an array of object"),
            (b"U\x01xQ.", "names a persistent object"),
            (b"", "cannot be read as a pickle"),
            (b"<html>404</html>", "cannot be read as a pickle"),
        ],
    )
    def test_other_pickles(self, written, complaint, tmp_path):
        assert complaint in self.refused(written, tmp_path)

    def test_a_damaged_one(self, tmp_path):
        written = pickle.dumps({"w": np.ones(100)})
        assert "cannot be read as a pickle" in self.refused(written[: len(written) // 2], tmp_path)
        with pytest.raises(WeightsError, match=r"a\.pkl holds no detector"):
            (tmp_path / "a.pkl").write_bytes(written)
            load(tmp_path / "a.pkl")
