"""One line to a backbone with its preprocessing, and the entry points of torch.hub."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from omegaconf import OmegaConf
from torchvision.transforms import v2

import ssl_toolkit
from ssl_toolkit.backbones import BackboneConfig, create_backbone, save_backbone
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.errors import UserError
from ssl_toolkit.loading import preprocess_of
from ssl_toolkit.zoo import published, zoo_path
from ssl_toolkit.zoo.exporters import export_backbone
from tests.zoo.exporters.helpers import fresh, subject

ROOT = Path(__file__).parents[1]
OFFICIAL = [
    "resnet50_alpha0p9", "resnet50_alpha0p75", "convnext_small_alpha0p9", "convnext_small_alpha0p75",
    "convnext_base_alpha0p9", "convnext_base_alpha0p75", "convnext_xlarge_alpha0p75",
]  # fmt: skip


def photo(height: int = 90, width: int = 120, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


def test_importing_the_package_is_light() -> None:
    code = "import sys, ssl_toolkit; print(sorted({'torch', 'hydra', 'timm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ssl_toolkit.nothing  # noqa: B018


def test_preprocess_is_what_torchvision_does() -> None:
    prepared = Preprocess((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 72, 64)
    image = PIL.Image.fromarray(photo(90, 90))
    theirs = v2.Compose([
        v2.ToImage(), v2.Resize(72, antialias=True), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(prepared.mean, prepared.std),
    ])  # fmt: skip
    torch.testing.assert_close(prepared(image), theirs(image), rtol=0, atol=1e-5)
    assert prepared(image).shape == (3, 64, 64)


def test_preprocess_takes_pictures_of_every_kind() -> None:
    prepared = Preprocess((0.4,) * 3, (0.25,) * 3, 72, 64)
    pixels = photo()
    wanted = prepared(pixels)
    others = [PIL.Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1), pixels[:, :, :]]
    for other in others:
        assert torch.equal(prepared(other), wanted)
    batch = prepared([*others, photo(200, 80)])
    assert batch.shape == (4, 3, 64, 64)
    assert torch.equal(batch[0], wanted)
    assert pickle.loads(pickle.dumps(prepared)) == prepared
    turned = PIL.Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(prepared(turned), prepared(np.ascontiguousarray(pixels[::-1, ::-1])))
    gray = Preprocess((0.4,), (0.25,), 72, 64)
    assert gray(PIL.Image.fromarray(pixels)).shape == (1, 64, 64)
    assert torch.equal(gray(pixels[:, :, 0]), gray(pixels[:, :, :1]))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("photo.jpg", "cannot preprocess str"),
        (photo().astype(np.float32), "cannot preprocess float32 of shape"),
        (photo(channels=4), "an image has 4 channels, the backbone takes 3"),
        ([], "the list is empty"),
        (3, "cannot preprocess int"),
    ],
)
def test_preprocess_refuses_the_rest(given: object, why: str) -> None:
    prepared = Preprocess((0.4,) * 3, (0.25,) * 3, 72, 64)
    with pytest.raises(UserError, match=why):
        prepared([given] if isinstance(given, str) else given)
    with pytest.raises(UserError, match="size=80 must be between 1 and resize=72"):
        Preprocess((0.4,) * 3, (0.25,) * 3, 72, 80)


def test_sizes_and_statistics_that_are_not_stored() -> None:
    backbone = create_backbone("tiny_resnet")
    plain = preprocess_of({}, backbone)
    assert (plain.resize, plain.size) == (256, 224)
    assert plain.mean == (0.485, 0.456, 0.406)
    stored = {"mean": [0.1] * 3, "std": [0.2] * 3, "eval_resize": 64, "eval_size": 64}
    assert preprocess_of(stored, backbone) == Preprocess((0.1,) * 3, (0.2,) * 3, 64, 64)
    assert preprocess_of(stored, backbone, size=96).resize == 96
    assert preprocess_of({}, backbone, size=448) == Preprocess(plain.mean, plain.std, 512, 448)
    assert preprocess_of({}, backbone, size=448, resize=448).resize == 448
    assert preprocess_of({}, create_backbone(BackboneConfig("tiny_resnet", in_channels=1))).mean == (0.449,)
    with pytest.raises(UserError, match="nothing says mean and std for the 5 channels"):
        preprocess_of({}, create_backbone(BackboneConfig("tiny_resnet", in_channels=5)))


def test_it_loads_files_runs_and_hub_folders(tmp_path: Path) -> None:
    given = subject("tiny_resnet")
    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save(OmegaConf.create({"data": {"name": "folder"}}), run / "config.yaml")
    save_backbone(run / "backbone.safetensors", given.backbone, given.preprocess.stored())
    export_backbone(given, "huggingface", tmp_path / "hub")
    image = PIL.Image.fromarray(photo())
    with torch.no_grad():
        wanted = given.backbone(given.preprocess(image)[None])
        for place in (run, str(run), run / "backbone.safetensors", tmp_path / "hub"):
            backbone = ssl_toolkit.load_backbone(place)
            assert not backbone.training
            assert backbone.preprocess == given.preprocess
            features = backbone(backbone.preprocess(image)[None])
            assert torch.equal(features.maps, wanted.maps)
            assert torch.equal(features.pooled, wanted.pooled)
    assert ssl_toolkit.load_backbone(run, size=32).preprocess == Preprocess((0.4,) * 3, (0.25,) * 3, 36, 32)


def test_it_says_what_it_cannot_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no file, no folder and not in the zoo: .*did you mean 'vicregl"):
        ssl_toolkit.load_backbone("vicregl/resnet50-a0.7")
    with pytest.raises(UserError, match="it is not a run folder"):
        ssl_toolkit.load_backbone(tmp_path)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The file of ``resnet50_alpha0p75`` in the cache, as if downloaded: fresh weights under the official names."""
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path))
    backbone = fresh("resnet50")
    path = zoo_path(published("vicregl_resnet50_alpha0p75"))
    path.parent.mkdir(parents=True)
    torch.save(dict(backbone.model.state_dict()), path)
    return backbone


@torch.no_grad()
def test_it_loads_from_the_zoo_by_either_name(cached: torch.nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("vicregl/resnet50-a0.75", "vicregl_resnet50_alpha0p75"):
        backbone = ssl_toolkit.load_backbone(name)
        assert torch.equal(backbone(images).pooled, cached(images).pooled)
        assert backbone.preprocess == Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224)


@torch.no_grad()
def test_torch_hub_gives_the_published_weights(cached: torch.nn.Module) -> None:
    backbone = torch.hub.load(str(ROOT), "resnet50_alpha0p75", source="local")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone(images).maps, cached(images).maps)
    assert backbone.preprocess.size == 224
    fresh_one = torch.hub.load(str(ROOT), "resnet50_alpha0p75", source="local", pretrained=False, size=448)
    assert fresh_one.preprocess.size == 448
    assert not torch.equal(fresh_one(images).maps, cached(images).maps)


def test_torch_hub_has_the_seven_official_names() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert sorted(listed) == sorted(OFFICIAL)  # as torch.hub.list has it
    for name in OFFICIAL:
        assert "alpha" in str(getattr(module, name).__doc__)
        assert published(f"vicregl_{name}").name == f"vicregl_{name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_torch_hub_builds_each(name: str) -> None:
    backbone = torch.hub.load(str(ROOT), name, source="local", pretrained=False)
    assert backbone.num_features == {"r": 2048, "s": 768, "b": 1024, "x": 2048}[name.split("_")[-2][0]]


@pytest.mark.command
def test_torch_hub_works_where_the_package_is_not_installed(tmp_path: Path) -> None:
    """As ``torch.hub.load("OWNER/ssl-toolkit", ...)`` does: the repository's folder alone."""
    code = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f)]
sys.path[:] = [p for p in sys.path if "__editable__" not in p and p not in ("", {str(ROOT)!r})]
import torch
backbone = torch.hub.load({str(ROOT)!r}, "resnet50_alpha0p9", source="local", pretrained=False)
print(type(backbone).__name__, backbone.num_features)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.stdout.split() == ["TimmBackbone", "2048"], done.stderr[-2000:]
