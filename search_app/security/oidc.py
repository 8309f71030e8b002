"""The login at an identity provider (OpenID Connect), with Streamlit's own routes and cookie.

Streamlit does the exchange: /auth/login, /oauth2callback and /auth/logout, configured in the [auth] section of
.streamlit/secrets.toml. It then sets a signed cookie. This module reads the cookie and decides which of the provider's
users have access. It relies on parts of Streamlit 1.67 that are not public: see the imports below.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lake.errors import BadInput, MissingExtra
from lake.extras import require

# Streamlit's cookie lasts thirty days; here a login lasts as long as one with a key.
SESSION_DAYS = 0.5
ROUTES = frozenset({"/auth/login", "/auth/logout", "/oauth2callback"})
SHORTEST_SECRET = 32
USER_SCOPES = ("read", "edit", "sql", "admin")


class Oidc:
    """The users that may log in at the identity provider.

    `users` are e-mail addresses that the provider has verified, `@domain` for everybody of a domain, or `*` for all
    users of the provider, each with `=SCOPE,SCOPE` behind it; without scopes a user only reads. Of the entries that
    name a user, the most specific one counts.
    Raises BadInput if a user is written otherwise, and if secrets.toml names no provider or has no cookie secret of at
    least 32 characters. Raises MissingExtra without Authlib.
    """

    def __init__(self, users: Iterable[str]) -> None:
        self.users = dict(map(_user, users))
        require("streamlit", "streamlit", "app")
        from streamlit import auth_util
        from streamlit.errors import StreamlitAuthError

        if not auth_util.is_authlib_installed():
            raise MissingExtra("Authlib", "oidc")
        section = auth_util.get_secrets_auth_section()
        if not section or "redirect_uri" not in section:
            raise BadInput("--allow-user needs an identity provider: an [auth] section in .streamlit/secrets.toml")
        self._secret = str(section.get("cookie_secret", ""))
        if len(self._secret) < SHORTEST_SECRET:
            raise BadInput(
                f"cookie_secret in .streamlit/secrets.toml needs at least {SHORTEST_SECRET} random characters"
            )
        self._origin = auth_util.get_origin_from_redirect_uri()
        named = [name for name, value in section.items() if isinstance(value, Mapping) and "client_id" in value]
        self._providers = {"default": False} if "client_id" in section else {}
        self._providers |= dict.fromkeys(named, True)
        try:
            for name in self._providers:
                auth_util.validate_auth_credentials(name)
        except StreamlitAuthError as error:
            raise BadInput(str(error)) from error
        if not self._providers:
            raise BadInput("the [auth] section of .streamlit/secrets.toml names no provider: it needs a client_id")

    def providers(self) -> Iterable[tuple[str, bool]]:
        """Each provider's name, and whether the login page shows it."""
        return self._providers.items()

    def address(self, provider: str) -> str | None:
        """The URL where a login at this provider starts, valid for two minutes; None for an unknown provider."""
        from streamlit.user_info import generate_login_redirect_url

        return generate_login_redirect_url(provider) if provider in self._providers else None

    def claims(self, cookies: Mapping[str, str]) -> dict[str, Any] | None:
        """The provider's claims about the user of this browser, at most twelve hours old; None without a login."""
        from streamlit.auth_util import get_cookie_with_chunks
        from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
        from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

        def signed(name: str) -> bytes | None:
            return decode_signed_value(self._secret, name, cookies.get(name, ""), SESSION_DAYS)

        if USER_COOKIE_NAME not in cookies:
            return None
        text = get_cookie_with_chunks(signed, USER_COOKIE_NAME)
        claims = json.loads(text) if text else {}
        return claims if claims.get("is_logged_in") is True and claims.get("origin") == self._origin else None

    def user(self, cookies: Mapping[str, str]) -> str | None:
        """The e-mail address (or subject) of the user of this browser; None if the user has no access.

        An address that the provider has not verified has that behind it, so that no entry but `*` names it.
        """
        claims = self.claims(cookies)
        if claims is None:
            return None
        email = str(claims.get("email") or "").lower()
        verified = claims.get("email_verified") in (True, "true") and "@" in email
        if verified and (email in self.users or _domain(email) in self.users):
            return email
        if "*" not in self.users:
            return None
        name = email or str(claims.get("sub") or "*")
        return name if verified or "@" not in name else f"{name} (not verified)"

    def scopes(self, user: str) -> tuple[str, ...]:
        """The scopes of a user that `user` returned."""
        entry = next((name for name in (user, _domain(user), "*") if name in self.users), None)
        return () if entry is None else self.users[entry]


def _domain(email: str) -> str:
    return email[email.rfind("@") :]


def _user(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, listed = text.lower().partition("=")
    scopes = tuple(scope.strip() for scope in listed.split(",") if scope.strip())
    if name != "*" and (name.count("@") != 1 or name.endswith("@")):
        raise BadInput(f"--allow-user {text!r}: write an e-mail address, @domain, or * for everybody")
    if unknown := [scope for scope in scopes if scope not in USER_SCOPES]:
        raise BadInput(f"--allow-user {text!r}: no scope {unknown[0]!r}; there are {', '.join(USER_SCOPES)}")
    return name, ("read", *(scope for scope in scopes if scope != "read"))
