import numpy as np
import PIL.Image
import pytest
import torch

from ssl_toolkit.data.transforms import Normalize, eval_batch, eval_mask, resized_shape
from ssl_toolkit.errors import UserError


def smooth(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, channels)).astype(np.uint8)
    planes = [
        np.asarray(PIL.Image.fromarray(coarse[..., c]).resize((width, height), PIL.Image.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


def by_pillow(image, resize, size, how):
    height, width = image.shape[:2]
    shape = resized_shape(height, width, resize)
    planes = image.reshape(height, width, -1)
    out = [np.asarray(PIL.Image.fromarray(planes[..., c]).resize(shape[::-1], how)) for c in range(planes.shape[2])]
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return np.stack(out)[:, top : top + size, left : left + size]


@pytest.mark.parametrize(("resize", "size"), [(32, 32), (40, 32), (256, 224)])
@pytest.mark.parametrize("shape", [(100, 60), (61, 200), (64, 64), (30, 31)])
def test_images_equal_pillow(shape, resize, size):
    image = smooth(*shape)
    ours = eval_batch([image], resize, size)
    assert ours.shape == (1, 3, size, size)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    theirs = by_pillow(image, resize, size, PIL.Image.BILINEAR)
    assert np.abs(ours[0].numpy().astype(int) - theirs.astype(int)).max() <= 1


def test_downscaling_is_antialiased():
    """A one-pixel checkerboard becomes gray, not one of its colours."""
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    out = eval_batch([board], 32, 32).float()
    assert out.shape == (1, 1, 32, 32)
    assert (out - 127.5).abs().max() < 6


def test_batches_of_mixed_shapes_keep_their_order():
    images = [smooth(40, 60, seed=0), smooth(32, 32, seed=1), smooth(40, 60, seed=2), smooth(80, 33, seed=3)]
    together = eval_batch(images, 36, 32)
    for position, image in enumerate(images):
        assert torch.equal(together[position], eval_batch([image], 36, 32)[0])


def test_right_sized_images_pass_untouched():
    images = [smooth(28, 28, 1, seed=s) for s in range(3)]
    assert torch.equal(eval_batch(images, 28, 28), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def nearest_sources(length, target, size):
    """For each pixel of the crop, the source pixels whose centre is nearest, exactly; two at a tie."""
    out = []
    for position in range((target - size) // 2, (target - size) // 2 + size):
        whole, rest = divmod((2 * position + 1) * length, 2 * target)
        out.append({whole} if rest else {whole - 1, whole})
    return out


@pytest.mark.parametrize("shape", [(100, 60), (61, 200), (64, 64), (30, 31)])
def test_masks_take_the_nearest_pixel(shape):
    rows, columns = np.indices(shape).astype(np.uint8)
    target = resized_shape(*shape, 40)
    found = eval_mask(rows, 40, 32)
    assert found.shape == (32, 32)
    assert found.dtype == torch.uint8
    for line, allowed in zip(found, nearest_sources(shape[0], target[0], 32)):
        assert len(line.unique()) == 1
        assert int(line[0]) in allowed
    for line, allowed in zip(eval_mask(columns, 40, 32).T, nearest_sources(shape[1], target[1], 32)):
        assert len(line.unique()) == 1
        assert int(line[0]) in allowed


def test_a_mask_stays_on_its_image():
    """An edge in image and mask alike is at the same place in both, to within the pixel that it cuts."""
    for height, width in ((90, 150), (45, 37)):
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[height // 3 :, width // 2 :] = 255
        image = eval_batch([mask[..., None]], 40, 32)[0, 0]
        differs = (image >= 128) != (eval_mask(mask, 40, 32) >= 128)
        assert differs.float().mean() < 0.02


def test_bad_input():
    with pytest.raises(UserError, match="channels"):
        eval_batch([smooth(30, 30), smooth(30, 30, 1)], 28, 28)
    with pytest.raises(UserError, match="no channels"):
        eval_batch([], 28, 28)
    with pytest.raises(ValueError, match="size 30"):
        eval_batch([smooth(30, 30)], 28, 30)


def test_normalise_by_hand() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    result = Normalize(mean, std)(images.contiguous(memory_format=torch.channels_last))
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[:, channel].double(), expected, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_images_of_16_bits_keep_their_precision():
    rng = np.random.default_rng(0)
    images = [rng.random((20, 30, 2), np.float32) * 255 for _ in range(2)]
    batch = eval_batch(images, 16, 8)
    assert batch.dtype == torch.float32
    assert torch.equal(eval_batch(images, 20, 20)[0], torch.from_numpy(images[0]).permute(2, 0, 1)[:, :, 5:25])
    normal = Normalize([0.5, 0.5], [0.25, 0.25])(batch)
    assert torch.allclose(normal, (batch / 255 - 0.5) / 0.25, atol=1e-5)
