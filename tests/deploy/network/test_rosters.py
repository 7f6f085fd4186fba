"""Rosters end and are replaced: the server warns in time, and a client takes no older one than it has seen."""

import datetime as dt

import pytest

from nufed.client import secure_trust, seen_rosters
from nufed.client.secure_trust import believed_roster, trust_config
from nufed.common.errors import PeerError
from nufed.common.secure_wire import ROSTER, SIGNED
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority, revoke_client
from nufed.deploy.network.rosters import RosterFile, write_roster


@pytest.fixture
def folder(tmp_path):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["localhost"])
    for name in ("a", "b"):
        add_client(folder, name)
    return folder


def signed(folder, **options):
    return write_roster(folder, **options)[0].read_bytes()


def believed(content, node_config):
    return believed_roster({ROSTER: content, SIGNED: 1}, node_config)


def node_config_of(folder, **more):
    key = folder.root / "keys" / "a.key"
    return {"data": "digits#0/2", **trust_config(key, folder.authority_certificate, trusts_server=False), **more}


def restart():
    """Forget what a client's process holds in memory."""
    seen_rosters._seen.clear()
    secure_trust._read_roster.cache_clear()


@pytest.mark.parametrize("keeps_state", [True, False], ids=["beside-its-state", "beside-its-key"])
def test_a_client_that_starts_again_does_not_believe_a_roster_from_before_a_key_was_revoked(
    folder, tmp_path, keeps_state
):
    config = node_config_of(folder, **({"state": str(tmp_path / "a.split")} if keeps_state else {}))
    old = signed(folder)
    revoke_client(folder, "b")
    new = signed(folder)

    assert believed(old, config).keys.keys() == {"a", "b"}
    assert believed(new, config).keys.keys() == {"a"}
    restart()
    with pytest.raises(PeerError, match=r"a serial number from \d+, got"):
        believed(old, config)
    assert believed(new, config).keys.keys() == {"a"}
    file = tmp_path / "a.split.rosters" if keeps_state else folder.root / "keys" / "a.key.rosters"
    file.write_text("{}")
    restart()
    with pytest.raises(PeerError, match="cannot read which rosters it has seen"):
        believed(new, config)


def test_a_client_that_cannot_write_remembers_in_its_process_and_says_so(folder, tmp_path, caplog):
    config = trust_config(tmp_path / "nowhere" / "a.key", folder.authority_certificate, trusts_server=False)
    old, new = signed(folder), signed(folder)

    believed(new, config)

    with pytest.raises(PeerError, match="serial number"):
        believed(old, config)
    assert "not remembered beyond this process" in caplog.text


def test_a_roster_ends_after_ninety_days_and_the_server_warns_once_a_day_before(folder):
    _, roster = write_roster(folder)
    file = RosterFile(folder.root / "roster.json", folder.authority_certificate)
    assert abs(roster.expires - dt.datetime.now(dt.UTC) - dt.timedelta(days=90)) < dt.timedelta(minutes=1)
    assert file.warning() is None

    signed(folder, days=14)

    assert "ends in 13 days" in (warning := file.warning())
    assert "sign a new one with `nufed certs roster`" in warning
    assert file.warning() is None


def test_a_roster_that_has_ended_is_refused_by_clients_and_server_with_what_to_do(folder):
    config = node_config_of(folder)
    content = signed(folder, days=-1)
    file = RosterFile(folder.root / "roster.json", folder.authority_certificate)

    for read in (file.read, lambda: believed(content, config)):
        with pytest.raises(PeerError, match=r"expired at .* operator makes a new one with `nufed certs roster`"):
            read()
    assert "NO SECURE SUM" in file.warning()

    signed(folder)
    _, roster = file.read()
    object.__setattr__(roster, "expires", dt.datetime.now(dt.UTC))  # as it ends while the server runs
    with pytest.raises(PeerError, match=r"ended on .* sign a new one"):
        file.read()
