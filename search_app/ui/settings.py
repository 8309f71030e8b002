"""Streamlit's options for this app: light and dark theme, no usage statistics, no toolbar.

They are set in code, so that they apply however lakeloop is installed or started.
"""

from __future__ import annotations

from typing import Any

ACCENT = "#0f6c8c"
ACCENT_DARK = "#2f93b8"
WRONG = "#c2570c"
WRONG_DARK = "#f08c3e"

_SERVER: dict[str, Any] = {
    "browser.gatherUsageStats": False,
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxWidgetStateSize": 4,
    "server.maxUploadSize": 1,  # no page uploads through Streamlit; images go to POST /v1/queries
    "server.enableStaticServing": False,
    "server.enableAgentApi": False,
    "server.enableCORS": True,  # so that it allows no other origin
    "server.corsAllowedOrigins": [],
    "server.enableXsrfProtection": True,
    # What search_app/security/access.py tells of the user: Streamlit gives a session back to nobody else.
    "server.trustedUserHeaders": {
        "X-Lakeloop-Key": "lakeloop_key",
        "X-Lakeloop-User": "lakeloop_user",
        "X-Lakeloop-Scopes": "lakeloop_scopes",
    },
    "runner.magicEnabled": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "logger.level": "warning",
}

_SHAPE: dict[str, Any] = {
    "theme.baseRadius": "6px",
    "theme.buttonRadius": "6px",
    "theme.baseFontSize": 15,
    "theme.headingFontWeights": [600, 600, 600, 600, 600, 600],
    "theme.headingFontSizes": ["1.5rem", "1.2rem", "1.02rem", "1rem", "1rem", "1rem"],
    "theme.metricValueFontSize": "1.55rem",
    "theme.codeFontSize": "0.82rem",
    "theme.paddingTop": "0.5rem",
    "theme.paddingBottom": "2rem",
}

_LIGHT: dict[str, Any] = {
    "primaryColor": ACCENT,
    "backgroundColor": "#ffffff",
    "secondaryBackgroundColor": "#f3f6f8",
    "textColor": "#1b2733",
    "borderColor": "#dbe2e8",
    "linkColor": ACCENT,
    "codeBackgroundColor": "#f3f6f8",
    "codeTextColor": "#1b2733",
    "orangeColor": WRONG,
    "orangeTextColor": "#9a4509",
    "grayTextColor": "#a9b4be",
    "chartCategoricalColors": [
        ACCENT,
        WRONG,
        "#7a8b99",
        "#7aa6b8",
        "#5b5f97",
        "#b8a04a",
        "#3f7d5c",
        "#a65c7a",
    ],
}

_DARK: dict[str, Any] = {
    "primaryColor": ACCENT_DARK,
    "backgroundColor": "#10161c",
    "secondaryBackgroundColor": "#19222b",
    "textColor": "#e4eaf0",
    "borderColor": "#2b3742",
    "linkColor": "#62bddd",
    "codeBackgroundColor": "#19222b",
    "codeTextColor": "#e4eaf0",
    "orangeColor": WRONG_DARK,
    "orangeTextColor": "#f5a869",
    "grayTextColor": "#5c6a77",
    "chartCategoricalColors": [
        "#4fb0d0",
        WRONG_DARK,
        "#93a3b1",
        "#2d7691",
        "#8f94d6",
        "#d3bd6b",
        "#6db58d",
        "#cf86a4",
    ],
}


def options() -> dict[str, Any]:
    """All options by their Streamlit names."""
    light = {f"theme.light.{name}": value for name, value in _LIGHT.items()}
    dark = {f"theme.dark.{name}": value for name, value in _DARK.items()}
    return {**_SERVER, **_SHAPE, **light, **dark}


def apply() -> None:
    """Sets the options in this process. They override a user's config.toml."""
    from streamlit import config

    for name, value in options().items():
        config.set_option(name, value)
