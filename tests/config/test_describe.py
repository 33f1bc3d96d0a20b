"""What ``--check`` says of the settings."""

from __future__ import annotations

from tests.config.config_harness import BASE, Loader
from twisted_vllm.config.declaration import values_of
from twisted_vllm.config.describe import LINES, describe
from twisted_vllm.config.settings import RoutingSettings, Settings


def test_the_defaults_are_described_in_a_few_lines(load_text: Loader) -> None:
    assert describe(load_text("", BASE)) == [
        "listen:         tcp:4000:interface=127.0.0.1",
        "mode:           open: no master key is set, and anybody may do everything, from this machine",
        "database:       SQLite, file twisted_vllm.sqlite3",
        "default server: http://gpu:8000",
        "path aliases:   on",
        "root routes:    on",
        "drain:          30 s",
        "ledger:         spool in twisted_vllm.sqlite3.spool, rows kept for ever",
        "log:            auto, level info, to standard output",
    ]


def test_what_differs_from_the_defaults_is_described(load_text: Loader) -> None:
    settings = load_text(
        """
        general_settings: {master_key: sk-hush, database_url: "postgres://user:hush@db:5432/keys", block_robots: true}
        model_list:
          - {model_name: a, litellm_params: {model: hosted_vllm/x, api_base: "https://one", api_key: hush, weight: 3}}
          - {model_name: a, litellm_params: {model: hosted_vllm/y, api_base: "http://two", timeout: 9}}
          - {model_name: b, litellm_params: {model: hosted_vllm/z, api_base: "http://two"}}
        passthrough:
          listen: ["unix:/a", "tcp:4000"]
          path_aliases: false
          root_routes: false
          tenant_routes: {allow: [/tokenizer_info], deny: [read_only]}
          tenant_fields:
            allow: [vllm_xargs]
            deny: [tools.type=custom]
            limits: {n: 8, best_of: null}
            media: {schemes: [https], allowed_hosts: ["*.example.com"], denied_hosts: [a.example.com]}
          trusted_proxies: [10.0.0.0/8, "::1"]
          limits: {max_body_bytes: 10}
          timeouts: {idle: null, connect: 0.5}
          servers: {"https://one": {timeouts: {idle: 5}}}
          drain_timeout: 0
          log: {format: json, file: log.json, level: debug}
        """
    )
    lines = describe(settings)
    assert lines == [
        "listen:         unix:/a",
        "listen:         tcp:4000",
        "mode:           master key and virtual keys",
        "database:       PostgreSQL, db:5432, database keys",
        "default server: none: a request that names no model goes to the first entry of the list",
        "path aliases:   off: only vLLM's own paths work",
        "root routes:    off: vLLM's routes are below /vllm alone",
        "open to keys:   /tokenizer_info",
        "closed to keys: read_only",
        "fields:         vllm_xargs open to keys",
        "fields:         tools.type=custom closed to keys",
        "fields:         n at most 8",
        "fields:         best_of without the default limit",
        "fields:         servers fetch https of hosts *.example.com for keys, never a.example.com",
        "trusted proxy:  10.0.0.0/8",
        "trusted proxy:  ::1/128",
        "drain:          0 s",
        "limit:          max_body_bytes 10 (default 1073741824)",
        "ledger:         spool in vllm_passthrough.spool, rows kept for ever",
        "log:            json, level debug, to log.json, rotated at 100000000 bytes, 10 old files kept",
        "routing:        prefix",
        "model:          a -> x at https://one:443, with its own key, share 3 of 4",
        "model:          a -> y at http://two:80, share 1 of 4",
        "model:          b -> z at http://two:80",
        "timeout:        connect 0.5 s (default 5 s)",
        "timeout:        idle no limit (default 300 s)",
        "timeout:        idle 5 s for one:443 (elsewhere no limit)",
        "timeout:        total 9 s for two:80 (elsewhere no limit)",
        "ignored:        general_settings.block_robots: not implemented yet: ignored",
    ]


def test_an_open_gateway_for_everybody_is_called_that(load_text: Loader) -> None:
    settings = load_text("passthrough: {allow_anonymous: true}", BASE)
    assert describe(settings)[1] == (
        "mode:           open: no master key is set, and anybody may do everything, from any address"
    )


def test_it_says_which_server_gets_a_request_and_what_takes_its_place(load_text: Loader) -> None:
    lines = describe(
        load_text(
            """
            model_list:
              - model_name: a
                litellm_params: {model: hosted_vllm/x, api_base: "http://one", weight: 3, rpm: 60, tpm: 1000}
              - {model_name: a, litellm_params: {model: hosted_vllm/x, api_base: "http://two"}}
              - {model_name: a, litellm_params: {model: hosted_vllm/x, api_base: "http://three", order: 2}}
              - model_name: b
                litellm_params: {model: hosted_vllm/z, api_base: "http://two"}
                model_info: {routing_strategy: session}
            router_settings:
              routing_strategy: least-busy
              num_retries: 1
              timeout: 30
              fallbacks: [{a: [b]}]
              context_window_fallbacks: [{b: [a]}]
              default_fallbacks: [a, b]
              model_group_alias: {gpt-4o: a}
            """
        )
    )
    assert lines[lines.index("log:            auto, level info, to standard output") + 1 :] == [
        "routing:        least-busy",
        "model:          a -> x at http://one:80, share 3 of 4, order 1, at most 60 requests a minute, "
        "at most 1000 tokens a minute",
        "model:          a -> x at http://two:80, share 1 of 4, order 1",
        "model:          a -> x at http://three:80, order 2",
        "model:          b -> z at http://two:80, routed by session",
        "alias:          gpt-4o -> a",
        "fallback:       a -> b",
        "fallback:       b -> a, if the prompt is too long",
        "fallback:       models without their own -> a, b",
        "timeout:        total 30 s (default no limit)",
        "setting:        router_settings.num_retries 1 (default 2)",
    ]


def test_a_setting_without_a_line_of_its_own_is_named_where_it_differs(load_text: Loader) -> None:
    settings = load_text(
        "litellm_settings: {require_auth_for_metrics_endpoint: true}\npassthrough: {end_users: {headers: [x-a, x-b]}}",
        BASE,
    )
    assert [line for line in describe(settings) if line.startswith("setting:")] == [
        "setting:        litellm_settings.require_auth_for_metrics_endpoint true (default false)",
        "setting:        passthrough.end_users.headers [x-a, x-b] (default [x-litellm-end-user-id])",
    ]


def test_each_line_covers_settings_that_there_are() -> None:
    paths = [path for holder in (Settings(), RoutingSettings()) for path, _, _ in values_of(holder)]
    covered = [path for line in LINES for path in line.settings]
    assert [each for each in covered if not any(f"{path}.".startswith(f"{each}.") for path in paths)] == []


def test_who_gets_prompts_and_alerts_is_described(load_text: Loader) -> None:
    lines = describe(
        load_text(
            """
            model_list:
              - model_name: a
                litellm_params: {model: hosted_vllm/a, api_base: "http://gpu:8000"}
                model_info: {log_bodies: "off"}
            general_settings:
              alerting: [slack, webhook]
              alert_types: [budget_alerts, outage_alerts, db_exceptions]
              alert_to_webhook_url: {budget_alerts: "https://finance.example.com/T0/hush-hush"}
            litellm_settings: {turn_off_message_logging: true}
            passthrough:
              log_bodies: {mode: metadata, models: {"b-*": full}, redact_fields: [user], redact_patterns: [email]}
            """,
            {
                **BASE,
                "SLACK_WEBHOOK_URL": "https://hooks.example.com/services/hush-hush",
                "WEBHOOK_URL": "https://programs.example.com/in?token=hush-hush",
            },
        )
    )
    assert [line for line in lines if line.startswith(("prompts", "alerts"))] == [
        "prompts:        metadata, if neither key, team nor model says anything else",
        "prompts:        full of the model b-*",
        "prompts:        off of the model a",
        "prompts:        texts of nobody: turn_off_message_logging",
        "prompts:        without user, email",
        "prompts:        to nobody: there is neither a sink nor a destination of traces",
        "alerts:         outage_alerts, db_exceptions to https://hooks.example.com",
        "alerts:         budget_alerts to https://finance.example.com",
        "alerts:         events of budgets, as JSON, to https://programs.example.com",
    ]
    assert not any("hush" in line or "alerting" in line or "webhook_url" in line for line in lines)
