"""The page that a test file looks at: its NOTEBOOK, in the JupyterLab of its fixture `lab`."""

import pytest
from jupyter_lab import opened_notebook, screenshots_folder


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    return screenshots_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def page(request, lab, screenshots):
    with opened_notebook(lab, request.module.NOTEBOOK, screenshots) as page:
        yield page
