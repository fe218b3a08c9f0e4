"""``prime-dht provide`` and ``providers``: who has some content."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from prime_dht.testing.processes import LOOPBACK, PRIME_DHT, Ended, running_warm

CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
OTHER_CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


def test_what_is_provided_is_found_until_ctrl_c(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    arguments = ("provide", CID, "--peer", three_nodes[0], "--listen", LOOPBACK, "--json")
    with running_warm(*PRIME_DHT, *arguments) as providing:
        announced = json.loads(providing.line())
        found = here("providers", CID, "--peer", three_nodes[1])
        as_json = here("providers", CID, "--peer", three_nodes[2], "--json")
        ended = providing.stop(signal.SIGINT)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert len(announced["told"]) == 3
    (address,) = announced["addresses"]
    assert found == Ended(0, f"{address}\n".encode(), "")
    assert json.loads(as_json.out)["addresses"] == [address.partition("/p2p/")[0]]


def test_to_announce_once_and_leave_warns_that_nobody_can_dial(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    ended = here("provide", OTHER_CID, "--once", "--peer", three_nodes[0], "--listen", LOOPBACK)
    assert (ended.status, ended.out) == (0, b"3 peers were told\n")
    assert "warning: nobody can dial this machine once this command has ended" in ended.err
    assert here("providers", OTHER_CID, "--peer", three_nodes[0]).status == 0


def test_content_that_nobody_has_is_not_found(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    cid = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert here("providers", cid, "--peer", three_nodes[0]) == Ended(
        1, b"", f"prime-dht: not found: nobody says that they have {cid}\n"
    )


def test_what_is_no_cid_is_a_mistake_before_anybody_is_dialled(here: Callable[..., Ended]) -> None:
    for command in ("provide", "providers"):
        ended = here(command, "no-cid")
        assert (ended.status, ended.out) == (2, b"")
        assert "neither a CID nor a multihash" in ended.err


def test_without_a_peer_there_is_nobody_to_tell(here: Callable[..., Ended]) -> None:
    ended = here("provide", CID, "--listen", LOOPBACK)
    assert (ended.status, ended.out) == (2, b"")
    assert "give --peer" in ended.err
