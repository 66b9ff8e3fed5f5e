"""The recording and alert rules as Prometheus reads them, and as a Kubernetes PrometheusRule."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from dashboards.alerts import ALERTS, Alert
from dashboards.recordings import BASELINES, RECORDINGS, WEEKLY, Recording

HEAD = "# Written by `python -m dashboards.grafana --write`; edit dashboards/{module}.py.\n"


class Links(BaseModel):
    """Where an alert's links lead.

    Examples
    --------
    >>> Links(grafana="https://grafana.example/").dashboard("ebbtide-overview")
    'https://grafana.example/d/ebbtide-overview'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runbook: str = Field("docs/runbook.md", description="Address of the runbook; an alert's section is added")
    grafana: str = Field("", description="Address of Grafana; a dashboard's path is added")

    def section(self, alert: str) -> str:
        """Return the address of an alert's section of the runbook."""
        return f"{self.runbook}#{alert.lower()}"

    def dashboard(self, uid: str) -> str:
        """Return the address of a dashboard."""
        return f"{self.grafana.rstrip('/')}/d/{uid}"


def rule_groups(links: Links | None = None) -> dict[str, Any]:
    """Return the groups, as Prometheus has them.

    Examples
    --------
    >>> [group["name"] for group in rule_groups()["groups"]]
    ['ebbtide-recordings', 'ebbtide-baselines', 'ebbtide-alerts']
    """
    links = links or Links()
    return {
        "groups": [
            {"name": "ebbtide-recordings", "rules": [_recording(each) for each in RECORDINGS]},
            {"name": "ebbtide-baselines", "interval": WEEKLY, "rules": [_recording(each) for each in BASELINES]},
            {"name": "ebbtide-alerts", "rules": [_alert(each, links) for each in ALERTS]},
        ]
    }


def rules_file(links: Links | None = None) -> str:
    """Return the rules as the text of a file for Prometheus.

    Examples
    --------
    >>> rules_file().splitlines()[1]
    'groups:'
    """
    return HEAD.format(module="recordings.py and dashboards/alerts") + dump(rule_groups(links))


def prometheus_rule(links: Links | None = None) -> str:
    """Return the rules as an object for a Prometheus operator.

    Examples
    --------
    >>> prometheus_rule().splitlines()[2]
    'kind: PrometheusRule'
    """
    head = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ebbtide", "labels": {"app.kubernetes.io/name": "ebbtide"}},
    }
    return HEAD.format(module="recordings.py and dashboards/alerts") + dump({**head, "spec": rule_groups(links)})


def dump(document: Any) -> str:
    """Return YAML in the order of the document, a line for each value."""
    text: str = yaml.safe_dump(document, sort_keys=False, width=10_000, allow_unicode=True)
    return text


def _recording(rule: Recording) -> dict[str, Any]:
    return {"record": rule.name, "expr": rule.expr}


def _alert(rule: Alert, links: Links) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.wait,
        "labels": {"severity": rule.severity},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": links.section(rule.name),
            "dashboard_url": links.dashboard(rule.dashboard),
        },
    }
