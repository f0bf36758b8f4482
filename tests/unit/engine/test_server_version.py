"""Which servers are new enough."""

import pytest

from trine.errors import ServerTooOldError
from trine.streams import check_version


@pytest.mark.parametrize("version", ["2.14.0", "2.15.1", "2.14.0-RC.1", "3.0.0"])
def test_a_new_server_passes(version):
    check_version(version)


@pytest.mark.parametrize("version", ["2.13.9", "1.99.0", "2.2.0", "0", ""])
def test_an_old_server_is_named_with_what_it_lacks(version):
    with pytest.raises(ServerTooOldError, match="atomic batches") as error:
        check_version(version)
    assert error.value.details == {"version": version}
