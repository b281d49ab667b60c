"""Download the Describable Textures Dataset, the textures of the paper."""

from pathlib import Path

from runtime.errors import UserError


def fetch_dtd(folder: str | Path = ".") -> Path:
    """Download the Describable Textures Dataset (600 MB) with torchvision. Returns `folder`/dtd/images.

    Raises:
        UserError: torchvision cannot be imported, or the download fails.
    """
    target = Path(folder) / "dtd" / "images"
    if target.is_dir():
        return target
    try:
        from torchvision.datasets import DTD
    except Exception as error:  # a torchvision for another build of torch raises various errors
        raise UserError(
            "torchvision",
            f"cannot be imported ({error})",
            "install the torchvision that matches your build of torch, or download DTD by hand and put its images "
            f"folder at {target}",
        ) from error
    try:
        DTD(root=str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "DTD", f"cannot be downloaded ({error})", f"download it by hand and put its images folder at {target}"
        ) from error
    (Path(folder) / "dtd" / "dtd" / "images").replace(target)
    return target
