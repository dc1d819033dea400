import pytest
from toy_run import Lives, write_images


@pytest.fixture(scope="session")
def lives(tmp_path_factory) -> Lives:
    return Lives(write_images(tmp_path_factory.mktemp("toy") / "images"))
