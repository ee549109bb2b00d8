"""Addresses, names and the hosts file: what may be connected to."""

import asyncio
import ipaddress
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download import resolver as resolver_module
from pipeline.download.addresses import AddressPolicy, read_hosts
from pipeline.download.failure import Failure
from pipeline.download.resolver import Resolver

BLOCKED = [
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:db8::1", "2002:7f00:1::1", "2002:808:808::",
    "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "5f00::1", "4000::1",
    "nonsense",
]  # fmt: skip
ALLOWED = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.0.1.1",
    "2606:4700::1111", "2a00:1450::1",
]  # fmt: skip


@pytest.mark.parametrize("address", BLOCKED)
def test_an_address_that_is_not_global_unicast_is_blocked(address: str) -> None:
    assert AddressPolicy().blocked(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_a_global_unicast_address_may_be_used(address: str) -> None:
    assert AddressPolicy().blocked(address) is None


@given(st.ip_addresses())
def test_whatever_python_calls_not_global_is_blocked(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not address.is_global:
        assert AddressPolicy().blocked(str(address))


@given(st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "100.64.0.0/10", "fc00::/7", "::ffff:0:0/96"]).flatmap(
    lambda range_: st.ip_addresses(network=range_)
))  # fmt: skip
def test_every_address_of_a_special_range_is_blocked(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert AddressPolicy().blocked(str(address))


def test_an_opened_range_is_opened_and_nothing_else() -> None:
    policy = AddressPolicy(["127.64.0.0/10", "fd00::/8"])
    assert policy.blocked("127.64.0.1") is None
    assert policy.blocked("127.127.255.255") is None
    assert policy.blocked("fd00::1") is None
    assert policy.blocked("127.0.0.1")
    assert policy.blocked("::ffff:127.64.0.1")
    assert policy.blocked("fc00::1")


class StubNames:
    """Counts questions; gives the answers of a name one after another, the last for ever."""

    def __init__(self, **answers: list[list[str] | int]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        await asyncio.sleep(0.01)
        left = self.answers[host.removesuffix(".test")]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, int):
            raise socket.gaierror(answer, "stub")
        return answer


async def test_a_name_is_asked_once_whoever_asks_at_the_same_time_or_later() -> None:
    names = StubNames(a=[["8.8.8.8", "8.8.8.8", "1.1.1.1"]])
    resolver = Resolver(AddressPolicy(), lookup=names)
    found = await asyncio.gather(*(resolver.addresses("a.test") for _ in range(50)))
    assert set(found) == {("8.8.8.8", "1.1.1.1")}
    await resolver.addresses("a.test")
    assert names.asked == ["a.test"]


async def test_a_name_that_does_not_exist_is_asked_once() -> None:
    names = StubNames(a=[socket.EAI_NONAME])
    resolver = Resolver(AddressPolicy(), lookup=names)
    for _ in range(3):
        with pytest.raises(Failure) as failed:
            await resolver.addresses("a.test")
        assert (failed.value.reason, failed.value.reached) == ("dns", False)
    assert names.asked == ["a.test"]


async def test_a_temporary_failure_is_asked_again() -> None:
    names = StubNames(a=[socket.EAI_AGAIN, ["8.8.8.8"]])
    assert await Resolver(AddressPolicy(), lookup=names).addresses("a.test") == ("8.8.8.8",)
    assert len(names.asked) == 2


async def test_one_blocked_address_among_good_ones_refuses_the_name() -> None:
    names = StubNames(a=[["8.8.8.8", "2606:4700::1", "10.0.0.1"]])
    with pytest.raises(Failure, match=r"10\.0\.0\.1") as failed:
        await Resolver(AddressPolicy(), lookup=names).addresses("a.test")
    assert failed.value.reason == "blocked_address"


async def test_a_caller_that_gives_up_leaves_the_question_to_the_others() -> None:
    resolver = Resolver(AddressPolicy(), lookup=StubNames(a=[["8.8.8.8"]]))
    hasty = asyncio.create_task(resolver.addresses("a.test"))
    patient = asyncio.create_task(resolver.addresses("a.test"))
    await asyncio.sleep(0)
    hasty.cancel()
    assert await patient == ("8.8.8.8",)


async def test_the_hosts_file_is_asked_before_dns_and_its_addresses_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# a comment\n8.8.8.8 A.test b.test # another\n1.1.1.1 a.test\n10.0.0.1 bad.test\n\n")
    assert read_hosts(file)["a.test"] == ["8.8.8.8", "1.1.1.1"]
    names = StubNames(c=[["1.1.1.1"]])
    resolver = Resolver(AddressPolicy(), str(file), names)
    assert await resolver.addresses("a.test") == ("8.8.8.8", "1.1.1.1")
    assert await resolver.addresses("c.test") == ("1.1.1.1",)
    with pytest.raises(Failure):
        await resolver.addresses("bad.test")
    assert names.asked == ["c.test"]


async def test_answers_go_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "POSITIVE_S", -1.0)
    names = StubNames(a=[["8.8.8.8"], ["1.1.1.1"]])
    resolver = Resolver(AddressPolicy(), lookup=names)
    assert await resolver.addresses("a.test") == ("8.8.8.8",)
    assert await resolver.addresses("a.test") == ("1.1.1.1",)
