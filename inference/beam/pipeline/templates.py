"""A step's prompt as a template over the row and earlier answers.

Knows Jinja; knows nothing about models. Templates run in Jinja's sandbox, with time and size limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from inference.errors import ConfigError, InputError
from inference.tokenizer.template_sandbox import TemplateLimitError, make_environment, render


class Template:
    """A Jinja template.

    Args:
        where: its location in the config, for errors.

    Attributes:
        names: the variables that it uses.

    Raises:
        ConfigError: the template is invalid.
    """

    def __init__(self, source: str, where: str):
        from jinja2 import TemplateError, meta

        self._source, self._where = source, where
        try:
            self.names = frozenset(meta.find_undeclared_variables(self._environment().parse(source)))
        except (TemplateError, TemplateLimitError, RecursionError) as error:
            raise ConfigError(f"{where} is not a valid template: {error}") from error

    def render(self, values: Mapping[str, Any]) -> str:
        """Render the prompt.

        Raises:
            InputError: the row lacks a variable, or the text is empty.
        """
        from jinja2 import TemplateError

        try:
            text = render(self._compiled, values)
        except (TemplateError, TemplateLimitError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"{self._where} cannot be filled in: {error}") from error
        if not text.strip():
            raise InputError(f"{self._where} gives an empty prompt for this row")
        return text

    @cached_property
    def _compiled(self) -> Any:
        return self._environment().from_string(self._source)

    @staticmethod
    def _environment() -> Any:
        from jinja2 import StrictUndefined

        return make_environment(undefined=StrictUndefined, keep_trailing_newline=True)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_compiled"}
