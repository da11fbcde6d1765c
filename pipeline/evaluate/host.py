"""Metrics on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from pipeline.direction import Better
from pipeline.stage import Stage


@frozen(eq=False, repr=False)
class HostMetric(Stage):
    """A metric computed on the host, batch by batch, in evaluation."""

    summary: Callable[[list[Any]], dict[str, Any]] = field(kw_only=True)

    def measured(self, values: Mapping[str, Any]) -> Any:
        """Its function's result on a batch."""
        given = self.arguments(values)
        with self.blamed(given):
            return self.function(**given)


def on_host(
    name: str, measure: Callable[..., Any], summary: Callable[[list[Any]], dict[str, Any]], *, better: Better = None
) -> HostMetric:
    """A metric that no graph can compute: of strings, of ids, or by another library's function.

    `measure(named values)` takes a batch on the host, including values that never leave it, and returns anything;
    `summary(list of these)` returns the named results. Evaluation only, which then runs uncompiled. `better` as in
    `metric`; by result names, if several metrics on the host differ in it.

    >>> longest = on_host("longest", lambda words: max(map(len, words)), lambda seen: {"longest": max(seen)})
    >>> longest.summary([longest(["pure", "step"]), longest(["function"])])
    {'longest': 8}
    """
    return HostMetric(name, measure, summary=summary, better=better)
