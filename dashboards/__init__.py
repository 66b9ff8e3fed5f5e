"""What people look at, built from the metric catalogue: dashboards, alerts, the page of metrics, the live page.

`live_page` is served by the consumer; `grafana` and `metrics_page` write files that are committed, and each has a
`--check` that fails when they are stale.
"""
