"""What a configuration file may say, what it then means, and how a refusal names its place."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from busproxy.policy.config import (
    BusConfig,
    Context,
    Limits,
    Openness,
    RuleKind,
    ServiceDirKind,
    parse_c_integer,
)
from busproxy.policy.loader import ConfigError, Machine, load_config

LISTEN = "<listen>unix:tmpdir=/tmp</listen>"
DBUS_TEST_DATA = "/usr/lib/dbus-1.0/debug-build/libexec/installed-tests/dbus/data"
SHIPPED = Path(__file__).parents[3] / "conf"

MACHINE = Machine(
    resolve_user={"root": 0, "alice": 1000, "1001": 1001}.get,
    resolve_group={"root": 0, "staff": 50}.get,
    selinux_enabled=lambda: False,
    selinux_policy_root=lambda: "/nonexistent/selinux",
)

Load = Callable[..., BusConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a file with the given body, beside files given by name."""

    def load_text(
        body: str = "", *, machine: Machine = MACHINE, raw: bool = False, **files: str
    ) -> BusConfig:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_conf", ".conf")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<busconfig>{text}</busconfig>")
        main = tmp_path / "bus.conf"
        main.write_text(body if raw else f"<busconfig>{LISTEN}{body}</busconfig>")
        return load_config(str(main), machine=machine)

    return load_text


def policy(rules: str, context: str = 'context="default"') -> str:
    return f"<policy {context}>{rules}</policy>"


# Single values and lists.


def test_an_empty_configuration_has_dbus_daemons_built_in_limits(load: Load) -> None:
    limits = load().limits
    assert limits == Limits()
    assert (limits.max_incoming_bytes, limits.max_message_size) == (127 << 20, 32 << 20)
    assert (limits.max_incoming_unix_fds, limits.max_message_unix_fds) == (64, 16)
    assert (limits.service_start_timeout, limits.auth_timeout, limits.pending_fd_timeout) == (
        25_000,
        30_000,
        150_000,
    )
    assert limits.reply_timeout is None


def test_every_listen_address_is_kept_in_order_with_its_line(load: Load) -> None:
    config = load(f"<busconfig>\n{LISTEN}\n<listen>unix:path=/x</listen></busconfig>", raw=True)
    assert [(listen.value, listen.line) for listen in config.listens] == [
        ("unix:tmpdir=/tmp", 2),
        ("unix:path=/x", 3),
    ]


def test_the_last_type_user_and_pidfile_win(load: Load) -> None:
    config = load(
        "<type>a</type><type>b</type><user>u</user><user>v</user><pidfile>/p</pidfile><pidfile>/q</pidfile>"
    )
    assert (config.type, config.user, config.pidfile) == ("b", "v", "/q")


@pytest.mark.parametrize("flag", ["fork", "keep_umask", "syslog", "allow_anonymous"])
def test_a_flag_element_sets_its_flag_and_no_other(load: Load, flag: str) -> None:
    config = load(f"<{flag}/>")
    flags = ("fork", "keep_umask", "syslog", "allow_anonymous")
    assert [name for name in flags if getattr(config, name)] == [flag]


def test_authentication_mechanisms_add_up(load: Load) -> None:
    config = load("<auth>EXTERNAL</auth><auth>ANONYMOUS</auth>")
    assert [mechanism.value for mechanism in config.auth] == ["EXTERNAL", "ANONYMOUS"]


def test_service_directories_keep_their_order_and_appear_once(load: Load, tmp_path: Path) -> None:
    config = load(
        "<servicedir>/b</servicedir><standard_session_servicedirs/><servicedir>rel</servicedir>"
        "<servicedir>/b</servicedir><standard_session_servicedirs/>"
    )
    assert [(entry.kind, entry.path) for entry in config.service_dirs] == [
        (ServiceDirKind.EXPLICIT, "/b"),
        (ServiceDirKind.STANDARD_SESSION, None),
        (ServiceDirKind.EXPLICIT, str(tmp_path / "rel")),
    ]


def test_the_service_helper_is_relative_to_the_file(load: Load, tmp_path: Path) -> None:
    assert load("<servicehelper>bin/helper</servicehelper>").servicehelper == str(tmp_path / "bin/helper")


def test_predefined_entities_and_character_references_are_text(load: Load) -> None:
    assert load("<pidfile>/a&amp;b&#100;&lt;</pidfile>").pidfile == "/a&bd<"


def test_a_comment_or_cdata_section_does_not_cut_a_text_in_two(load: Load) -> None:
    assert load("<pidfile>/a<!-- x -->b<![CDATA[c]]></pidfile>").pidfile == "/abc"


def test_white_space_around_a_text_belongs_to_it(load: Load) -> None:
    assert load("<type> session\n</type>").type == " session\n"


def test_a_doctype_with_an_external_dtd_is_accepted_and_not_fetched(load: Load) -> None:
    doctype = '<!DOCTYPE busconfig PUBLIC "-//x//y" "file:///nonexistent/busconfig.dtd">'
    assert load(f"{doctype}<busconfig>{LISTEN}</busconfig>", raw=True).listens


def test_selinux_associations_and_the_apparmor_mode_are_kept(load: Load) -> None:
    config = load('<selinux><associate own="a.b" context="c_t"/></selinux><apparmor mode="disabled"/>')
    assert config.selinux_contexts["a.b"].value == "c_t"
    assert config.apparmor_mode == "disabled"
    assert any("SELinux" in sentence for sentence in config.unenforced())


# Limits.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("17", 17),
        (" 0x10 bytes", 16),
        ("010", 8),
        ("12<!-- -->34", 1234),
        ("3123123123", 3123123123),
        ("0", 0),
    ],
)
def test_a_limit_is_read_as_c_reads_numbers(load: Load, text: str, value: int) -> None:
    config = load(f'<limit name="max_incoming_bytes">{text}</limit>')
    assert config.limits.max_incoming_bytes == value


@pytest.mark.parametrize(
    ("text", "whole", "value"),
    [("10x", False, 10), ("10x", True, None), ("-0x1f", True, -31), ("0x", False, 0), ("09", False, 0)],
)
def test_c_numbers(text: str, whole: bool, value: int | None) -> None:
    assert parse_c_integer(text, whole=whole) == value


# Refusals.

REFUSED = {
    "text": "takes no text",
    "<bees/>": "is not allowed inside",
    "<busconfig/>": "is not allowed inside",
    "<allow own='a'/>": "is not allowed inside",
    "<listen/>": "needs a text",
    "<type/>": "needs a text",
    "<include/>": "needs a text",
    "<listen carefully='yes'>unix:path=/x</listen>": "no attribute",
    "<listen>unix:<fork/></listen>": "is not allowed inside",
    "<fork>now</fork>": "takes no text",
    "<fork when='now'/>": "no attribute",
    "<auth>PASSWORD</auth>": "no known mechanism",
    "<auth> EXTERNAL</auth>": "no known mechanism",
    "<limit name='max_bees'>5</limit>": "there is no limit",
    "<limit>5</limit>": "needs a name",
    "<limit name='auth_timeout'>many</limit>": "needs a number",
    "<limit name='max_incoming_bytes'>99999999999999999999</limit>": "needs a number",
    "<limit name='auth_timeout'>-1</limit>": "negative",
    "<limit name='auth_timeout'>2147483648</limit>": "larger",
    "<include ignore_missing='maybe'>x</include>": "ignore_missing",
    "<include>nonexistent.conf</include>": "cannot be read",
    "<include ignore_missing='yes'>.</include>": "not a regular file",
    "<include selinux_root_relative='yes'>x</include>": "/nonexistent/selinux/x",
    "<includedir>bus.conf</includedir>": "cannot be read",
    "<policy/>": "exactly one",
    "<policy context='default' user='root'/>": "exactly one",
    "<policy context='often'/>": "cannot be",
    "<policy at_console='yes'/>": "cannot be",
    "<policy user='root'><allow user='*'/></policy>": "one user or group",
    "<policy group='staff'><deny group='root'/></policy>": "one user or group",
    "<policy context='default'><foo/></policy>": "is not allowed inside",
    "<selinux><associate own='a'/></selinux>": "needs both",
    "<apparmor mode='plaintive'/>": "mode",
    "<apparmor mode='required'/>": "does not offer",
    "&unknown;": "undefined entity",
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.items(), ids=list(REFUSED))
def test_a_faulty_file_is_refused_with_a_reason(load: Load, body: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(body)
    assert reason in refusal.value.reason
    assert refusal.value.line == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no element found"),
        ("<foo/>", "root element"),
        ("<busconfig><user>", "no element found"),
        ("<busconfig/>", "no <listen>"),
        ("<busconfig xmlns='x'/>", "no attribute"),
        (f"<!DOCTYPE busconfig [<!ENTITY a 'b'>]><busconfig>{LISTEN}</busconfig>", "DTD inside"),
        ("<!DOCTYPE busconfig SYSTEM 'x'><busconfig><type>&a;</type></busconfig>", "entity"),
        ("<busconfig><user>a</foo></busconfig>", "mismatched tag"),
    ],
)
def test_a_file_that_is_no_bus_configuration_is_refused(load: Load, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(text, raw=True)


def test_a_refusal_names_file_line_and_reason(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("\n<include>more.conf</include>", more_conf="\n\n<bees/>")
    assert str(refusal.value) == f"{tmp_path}/more.conf:3: <bees> is not allowed inside <busconfig>"


def test_a_missing_main_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(str(tmp_path / "bus.conf"), machine=MACHINE)
    assert str(refusal.value) == f"{tmp_path}/bus.conf: cannot be read: No such file or directory"


def test_a_file_larger_than_a_mebibyte_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(f"<!--{' ' * (1 << 20)}-->")


RULES_REFUSED = [
    "",
    'log="true"',
    'max_fds="1"',
    'species="stoat"',
    'own="a" own_prefix="b"',
    'own="a" user="*"',
    'own="a" eavesdrop="true"',
    'user="*" max_fds="1"',
    'send_type="signal" receive_type="signal"',
    'send_destination="a" send_destination_prefix="b"',
    'send_member="M"',
    'receive_member="M"',
    'send_error="*" send_interface="*"',
    'receive_error="a" receive_member="M" receive_path="/"',
    'send_type="bogus"',
    'receive_type="bogus"',
    'send_broadcast="maybe"',
    'send_broadcast="true" send_destination="a.b"',
    'send_requested_reply="maybe"',
    'receive_requested_reply="maybe"',
    'eavesdrop="maybe"',
    'send_type="*" max_fds="-1"',
    'send_type="*" min_fds="33554433"',
    'send_type="*" min_fds="few"',
]
RULES_ACCEPTED = [
    'own=""',
    'own="*" log="whatever"',
    'own_prefix="*"',
    'eavesdrop="true"',
    'eavesdrop="false" max_fds="3zz"',
    'send_type="*" max_fds="33554432"',
    'send_broadcast="true" send_destination="*"',
    'send_member="M" send_path="/"',
    'receive_error="a.b" receive_sender="c.d"',
    'user="nobody there"',
    'user="*"',
    'group="staff"',
]


@pytest.mark.parametrize("attributes", RULES_REFUSED)
def test_a_rule_that_cannot_be_meant_is_refused(load: Load, attributes: str) -> None:
    with pytest.raises(ConfigError):
        load(policy(f"<allow {attributes}/>"))


@pytest.mark.parametrize("attributes", RULES_ACCEPTED)
def test_a_rule_that_dbus_daemon_takes_is_taken(load: Load, attributes: str) -> None:
    assert load(policy(f"<deny {attributes}/>")).policies


def test_rules_keep_their_kind_place_and_order(load: Load) -> None:
    config = load('\n<policy context="default">\n<allow own="*"/>\n<deny send_type="*"/></policy>')
    (block,) = config.policies
    assert (block.context, block.line) == (Context.DEFAULT, 2)
    assert [(rule.allow, rule.kind, rule.line) for rule in block.rules] == [
        (True, RuleKind.OWN, 3),
        (False, RuleKind.SEND, 4),
    ]


# Inclusion.


def test_an_included_file_adds_lists_and_replaces_values_where_it_stands(load: Load) -> None:
    config = load(
        "<type>a</type><auth>EXTERNAL</auth><include>more.conf</include><pidfile>/late</pidfile>"
        + policy('<deny own="last"/>'),
        more_conf="<type>b</type><pidfile>/early</pidfile><listen>unix:path=/x</listen><auth>ANONYMOUS</auth>"
        "<fork/><keep_umask/><allow_anonymous/>" + policy('<allow own="first"/>'),
    )
    assert (config.type, config.pidfile) == ("b", "/late")
    assert [listen.value for listen in config.listens] == ["unix:tmpdir=/tmp", "unix:path=/x"]
    assert [mechanism.value for mechanism in config.auth] == ["EXTERNAL", "ANONYMOUS"]
    assert config.fork
    assert config.keep_umask
    assert config.allow_anonymous
    assert [rule.attributes["own"] for _, rule in config.rules()] == ["first", "last"]


def test_only_the_main_file_decides_about_syslog(load: Load) -> None:
    assert not load("<include>more.conf</include>", more_conf="<syslog/>").syslog


def test_limits_follow_the_order_of_the_text_across_files(load: Load) -> None:
    config = load(
        '<limit name="auth_timeout">1</limit><limit name="max_containers">2</limit>'
        '<include>more.conf</include><limit name="max_message_size">5</limit>',
        more_conf='<limit name="auth_timeout">3</limit><limit name="max_message_size">4</limit>',
    )
    limits = config.limits
    assert (limits.auth_timeout, limits.max_containers, limits.max_message_size) == (3, 2, 5)


def test_the_address_may_stand_in_an_included_file(load: Load) -> None:
    text = "<busconfig><include>more.conf</include></busconfig>"
    assert load(text, raw=True, more_conf=LISTEN).listens[0].file.endswith("more.conf")


def test_relative_names_in_an_included_file_are_relative_to_that_file(load: Load, tmp_path: Path) -> None:
    config = load(
        "<include>sub/a.conf</include>",
        sub__a_conf="<include>b.conf</include>",
        sub__b_conf="<servicedir>s</servicedir>",
    )
    assert config.service_dirs[0].path == str(tmp_path / "sub/s")
    assert [os.path.relpath(path, tmp_path) for path in config.files] == [
        "bus.conf",
        "sub/a.conf",
        "sub/b.conf",
    ]


def test_a_missing_file_may_be_ignored(load: Load) -> None:
    assert load('<include ignore_missing="yes">nonexistent.conf</include>').warnings == []


def test_ignoring_a_missing_file_forgives_one_missing_deeper_but_says_so(load: Load) -> None:
    config = load(
        '<include ignore_missing="yes">a.conf</include>', a_conf="<type>lost</type><include>b.conf</include>"
    )
    assert config.type is None
    assert len(config.warnings) == 1


def test_a_broken_file_is_not_forgiven_by_ignore_missing(load: Load) -> None:
    with pytest.raises(ConfigError):
        load('<include ignore_missing="yes">a.conf</include>', a_conf="<bees/>")


def test_a_file_that_includes_itself_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="includes itself"):
        load("<include>a.conf</include>", a_conf="<include>./a.conf</include>")


def test_the_same_file_may_be_included_twice_in_a_row(load: Load) -> None:
    config = load("<include>a.conf</include><include>a.conf</include>", a_conf="<auth>EXTERNAL</auth>")
    assert len(config.auth) == 2


def test_a_directory_is_read_in_the_order_of_names_and_only_conf_files(load: Load, tmp_path: Path) -> None:
    (tmp_path / "bus.d").mkdir()
    (tmp_path / "bus.d" / "a.txt").write_text("no XML")
    config = load("<includedir>bus.d</includedir>", **{f"bus.d__{n}_conf": f"<type>{n}</type>" for n in "ba"})
    assert [os.path.basename(path) for path in config.files] == ["bus.conf", "a.conf", "b.conf"]
    assert config.type == "b"
    assert config.config_dirs == [str(tmp_path / "bus.d")]


def test_a_broken_file_in_a_directory_leaves_nothing_behind_but_a_warning(load: Load, tmp_path: Path) -> None:
    broken = "<type>lost</type><fork/><limit name='auth_timeout'>1</limit>" + policy('<allow own="*"/>')
    config = load(
        "<includedir>d</includedir>",
        d__1_conf=broken + "<bees/>",
        d__2_conf="<auth>EXTERNAL</auth>",
    )
    assert config.type is None
    assert not config.fork
    assert config.policies == []
    assert config.limits == Limits()
    assert len(config.auth) == 1
    assert len(config.warnings) == 1
    assert f"{tmp_path}/d/1.conf:1: <bees>" in config.warnings[0]


def test_a_missing_directory_is_no_error(load: Load) -> None:
    assert load("<includedir>nonexistent.d</includedir>").warnings == []


def test_an_selinux_file_is_included_only_where_selinux_is_enabled(load: Load, tmp_path: Path) -> None:
    body = '<include if_selinux_enabled="yes" selinux_root_relative="yes">a.conf</include>'
    enabled = replace(MACHINE, selinux_enabled=lambda: True, selinux_policy_root=lambda: str(tmp_path))
    assert load(body, a_conf="<fork/>").fork is False
    assert load(body, a_conf="<fork/>", machine=enabled).fork is True


# Who may connect.


def connects(config: BusConfig, uid: int, *groups: int) -> bool:
    return config.connect.may_connect(uid, groups, owner_uid=500)


def test_without_a_rule_only_the_owner_may_connect(load: Load) -> None:
    config = load(policy('<allow own="*"/>'))
    assert connects(config, 500)
    assert not connects(config, 0)


def test_the_last_matching_rule_decides(load: Load) -> None:
    config = load(policy('<allow user="*"/><deny user="alice"/><deny user="1001"/><allow group="staff"/>'))
    assert connects(config, 1)
    assert not connects(config, 1000)
    assert not connects(config, 1001)
    assert connects(config, 1000, 7, 50)


def test_a_group_wildcard_means_everybody(load: Load) -> None:
    config = load(policy('<deny group="*"/>'))
    assert not connects(config, 500)


def test_mandatory_rules_come_after_default_ones_wherever_they_stand(load: Load) -> None:
    config = load(policy('<deny user="alice"/>', 'context="mandatory"') + policy('<allow user="*"/>'))
    assert not connects(config, 1000)
    assert connects(config, 1)


def test_a_rule_for_an_unknown_user_is_left_out_and_never_widened(load: Load) -> None:
    config = load(policy('<allow user="nobody there"/>'))
    assert not connects(config, 1)
    assert len(config.warnings) == 1
    assert 'no user "nobody there"' in config.warnings[0]


def test_a_policy_for_an_unknown_group_is_left_out_with_all_it_says(load: Load) -> None:
    config = load(policy('<allow own="*"/><allow user="*"/>', 'group="nobody there"'))
    assert config.policies == []
    assert not connects(config, 1)
    assert len(config.warnings) == 1


def test_connect_rules_at_the_console_have_no_effect(load: Load) -> None:
    assert not connects(load(policy('<allow user="*"/>', 'at_console="true"')), 1)


# Is the policy open?

OPEN = '<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>'
PLAINLY_OPEN = '<allow send_type="*"/><allow receive_sender="*"/><allow own="*"/>'


@pytest.mark.parametrize(
    ("body", "openness"),
    [
        (policy(OPEN), Openness.EVERYTHING),
        (policy('<deny own="*"/>' + OPEN), Openness.EVERYTHING),
        (policy(OPEN + '<allow own="a.b"/>'), Openness.EVERYTHING),
        (policy(OPEN + '<allow send_interface="*"/>'), Openness.EVERYTHING),
        (policy('<deny own="a"/>', 'user="root"') + policy(OPEN, 'context="mandatory"'), Openness.EVERYTHING),
        (policy(PLAINLY_OPEN), Openness.ALL_BUT_EAVESDROPPING),
        (policy(OPEN + '<deny eavesdrop="true"/>'), Openness.ALL_BUT_EAVESDROPPING),
        (policy(OPEN + '<deny send_type="error"/>' + PLAINLY_OPEN), Openness.ALL_BUT_EAVESDROPPING),
        ("", Openness.RESTRICTED),
        (policy('<allow own="*"/>'), Openness.RESTRICTED),
        (policy(OPEN + '<deny own="a.b"/>'), Openness.RESTRICTED),
        (policy(OPEN, 'user="root"'), Openness.RESTRICTED),
        (policy(OPEN) + policy('<deny send_path="/a"/>', 'group="staff"'), Openness.RESTRICTED),
        (policy('<deny own="a"/>', 'user="root"') + policy(OPEN), Openness.RESTRICTED),
        (policy(OPEN.replace("send_destination", "send_interface='a.b' send_path")), Openness.RESTRICTED),
        (policy(OPEN.replace('"*" ', '"*" max_fds="4" ')), Openness.RESTRICTED),
        (policy(OPEN.replace('"*" ', '"*" min_fds="1" ')), Openness.RESTRICTED),
        (policy(OPEN.replace("send_destination", "send_destination_prefix")), Openness.RESTRICTED),
        (policy(OPEN.replace('own="*"', 'own_prefix="a"')), Openness.RESTRICTED),
    ],
)
def test_how_open_a_policy_is(load: Load, body: str, openness: Openness) -> None:
    config = load(body)
    assert config.openness() is openness
    assert config.is_open() is (openness is not Openness.RESTRICTED)
    assert bool(config.unenforced()) is (openness is not Openness.EVERYTHING)


def test_what_is_not_enforced_counts_the_rules_and_names_the_first_denial(load: Load, tmp_path: Path) -> None:
    config = load("\n" + policy(OPEN + '\n<deny own="a.b"/>\n<deny own="c.d"/>'))
    (sentence,) = config.unenforced()
    assert "5 rules" in sentence
    assert f"{tmp_path}/bus.conf:3" in sentence


# The files of others.


def installed_files(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob.glob(f"{DBUS_TEST_DATA}/{pattern}"))


needs_dbus_tests = pytest.mark.skipif(
    not os.path.isdir(DBUS_TEST_DATA), reason="the package dbus-tests is not installed"
)


@needs_dbus_tests
def test_every_valid_file_of_the_dbus_tests_loads() -> None:
    files = installed_files("valid-config-files*/*.conf", "equiv-config-files/*/*.conf")
    assert len(files) > 10
    for path in files:
        assert load_config(path).listens


@needs_dbus_tests
def test_every_invalid_file_of_the_dbus_tests_is_refused() -> None:
    files = installed_files("invalid-config-files/*.conf")
    assert len(files) > 10
    for path in files:
        with pytest.raises(ConfigError):
            load_config(path)


@needs_dbus_tests
def test_equivalent_files_of_the_dbus_tests_mean_the_same() -> None:
    for directory in installed_files("equiv-config-files/*"):
        first, *others = (load_config(path) for path in sorted(glob.glob(f"{directory}/*.conf")))
        assert others
        for other in others:
            assert [item.value for item in first.listens] == [item.value for item in other.listens]
            assert [item.path for item in first.service_dirs] == [item.path for item in other.service_dirs]
            assert (first.type, first.user, first.limits) == (other.type, other.user, other.limits)
            assert [rule.attributes for _, rule in first.rules()] == [
                rule.attributes for _, rule in other.rules()
            ]


@pytest.mark.parametrize("name", ["session.conf", "system.conf"])
def test_the_machines_own_configuration_loads(name: str) -> None:
    path = f"/usr/share/dbus-1/{name}"
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    assert load_config(path).type == name.removesuffix(".conf")


def test_our_session_configuration_is_open_and_says_what_it_is() -> None:
    config = load_config(str(SHIPPED / "session.conf"), machine=replace(MACHINE, list_directory=lambda _: []))
    assert config.type == "session"
    assert config.openness() is Openness.EVERYTHING
    assert config.warnings == []
    assert not connects(config, 1)


def test_our_system_configuration_lets_everybody_in_and_restricts_them() -> None:
    config = load_config(str(SHIPPED / "system.conf"), machine=replace(MACHINE, list_directory=lambda _: []))
    assert config.type == "system"
    assert config.openness() is Openness.RESTRICTED
    assert config.warnings == []
    assert connects(config, 1)


DAEMON = shutil.which("dbus-daemon")
UNCOMPARED = {"&unknown;", "<apparmor mode='required'/>"}
"""Bodies on which dbus-daemon's verdict depends on the machine."""


def accepted_by_dbus_daemon(body: str, directory: Path) -> bool:
    """Whether dbus-daemon gets as far as printing its address with this configuration."""
    main = directory / "verdict.conf"
    main.write_text(f"<busconfig><listen>unix:dir={directory}</listen>{body}</busconfig>")
    assert DAEMON is not None
    process = subprocess.Popen(
        [DAEMON, f"--config-file={main}", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        return bool(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


@pytest.mark.program("dbus-daemon")
@pytest.mark.parametrize(
    "body",
    [
        *(body for body in REFUSED if body not in UNCOMPARED),
        *(policy(f"<allow {attributes}/>") for attributes in (*RULES_REFUSED, *RULES_ACCEPTED)),
        policy('<allow user="*"/>', 'at_console="true"'),
        policy('<allow user="*"/>', 'user="nobody there"'),
        '<limit name="max_incoming_bytes"> 0x10 bytes</limit>',
        "<includedir>nonexistent.d</includedir>",
        "<type> </type>",
    ],
)
def test_dbus_daemon_gives_the_same_verdict(body: str, tmp_path: Path) -> None:
    accepted = accepted_by_dbus_daemon(body, tmp_path)
    if accepted:
        load_config(str(tmp_path / "verdict.conf"))
    else:
        with pytest.raises(ConfigError):
            load_config(str(tmp_path / "verdict.conf"))
