"""Write deploy/grafana/*.json from scripts/panels.py (`make docs`)."""

import json
from pathlib import Path
from typing import Any

from scripts.panels import DASHBOARDS, Panel

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana"


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    heat = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(65 + i),
            "expr": expr,
            "legendFormat": legend or "__auto",
            "format": "heatmap" if heat else "time_series",
            "datasource": SOURCE,
        }
        for i, (expr, legend) in enumerate(panel.queries)
    ]
    custom = {
        "fillOpacity": 20 if panel.stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none"},
    }
    options: dict[str, dict[str, Any]] = {
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"},
        "heatmap": {
            "calculate": False,
            "yAxis": {"unit": "short"},
            "color": {"mode": "scheme", "scheme": "Blues"},
        },
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        },
    }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": 4 if panel.kind == "stat" else 8},
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": custom if panel.kind == "timeseries" else {}},
            "overrides": [],
        },
        "options": options[panel.kind],
    }


SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(uid: str) -> str:
    """The JSON of one dashboard, as Grafana imports it."""
    title, rows = DASHBOARDS[uid]
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": name,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        x, y = 0, y + 1
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + panels[-1]["gridPos"]["h"]
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x += panel.width
        y += panels[-1]["gridPos"]["h"]
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "label": "Servers",
            "type": "query",
            "datasource": SOURCE,
            "query": "label_values(pit_ready, job)",
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "refresh": 2,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    whole = {
        "uid": uid,
        "title": title,
        "tags": ["pit-serve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for uid in DASHBOARDS:
        (FOLDER / f"{uid}.json").write_text(dashboard(uid), encoding="utf-8")


if __name__ == "__main__":
    main()
