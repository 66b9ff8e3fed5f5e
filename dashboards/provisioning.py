"""What Prometheus and Grafana are told at their start: whom to scrape, and which rules, data source and dashboards."""

from __future__ import annotations

from typing import Any

from dashboards.rules import HEAD, dump

SCRAPE_INTERVAL = "15s"
"""How often Prometheus scrapes. Grafana is told the same, for `$__rate_interval` is worked out from it."""


def prometheus_config(target: str = "ebbtide:9464") -> str:
    """Return `prometheus.yml`.

    Parameters
    ----------
    target
        Host and port of the consumer's HTTP server.

    Examples
    --------
    >>> prometheus_config().splitlines()[1:3]
    ['global:', '  scrape_interval: 15s']
    """
    config: dict[str, Any] = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            {"job_name": "ebbtide", "static_configs": [{"targets": [target]}]},
            {"job_name": "prometheus", "static_configs": [{"targets": ["127.0.0.1:9090"]}]},
        ],
    }
    return HEAD.format(module="provisioning") + dump(config)


def grafana_source(url: str = "http://prometheus:9090", streams: str = "http://127.0.0.1:9464/api/streams") -> str:
    """Return Grafana's data source; an exemplar leads to its stream.

    Parameters
    ----------
    url
        Where Grafana reaches Prometheus.
    streams
        Where a browser reaches `/api/streams`.
    """
    source = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "isDefault": True,
        "editable": False,
        "jsonData": {
            "timeInterval": SCRAPE_INTERVAL,
            "httpMethod": "POST",
            "prometheusType": "Prometheus",
            "exemplarTraceIdDestinations": [
                # $$ is a dollar sign where Grafana would put a variable of the environment.
                {"name": "stream", "url": streams + "/$${__value.raw}", "urlDisplayLabel": "This stream, now"}
            ],
        },
    }
    return HEAD.format(module="provisioning") + dump({"apiVersion": 1, "datasources": [source]})


def grafana_dashboards(path: str = "/etc/grafana/dashboards") -> str:
    """Return where Grafana finds the dashboards: files, which are changed in code and not on the screen."""
    provider = {
        "name": "Ebbtide",
        "folder": "Ebbtide",
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 60,
        "options": {"path": path, "foldersFromFilesStructure": False},
    }
    return HEAD.format(module="provisioning") + dump({"apiVersion": 1, "providers": [provider]})
