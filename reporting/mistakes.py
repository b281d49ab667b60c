"""Pictures of what is wrong, for people to look at."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from config import Config
from data.image_io import write_image
from runtime.errors import ShownError, UserError


def with_picture(error: ShownError, config: Config) -> UserError:
    """The same mistake, its picture written into the run's folder and named."""
    path = config.run_folder / error.name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, error.picture)
    return UserError(f"{error}; {path} shows it")


def shows_mistakes(run: Callable[..., Any]) -> Callable[..., Any]:
    """For a mode, whose first argument are the settings: a mistake that a picture shows is told with that."""

    @wraps(run)
    def shown(config: Config, *arguments: Any, **options: Any) -> Any:
        try:
            return run(config, *arguments, **options)
        except ShownError as error:
            raise with_picture(error, config) from error

    return shown
