"""`pipe sample`: text from a language model."""

from __future__ import annotations

import click

from cli import arguments, as_json


@click.command("sample")
@arguments.run
@click.option("--prompt", default="\n", metavar="TEXT", help="start of the text")
@click.option(
    "--count", type=click.IntRange(1, 10**7), default=200, metavar="N", help="tokens to generate", show_default=True
)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.8, metavar="X", help="0 for the likeliest", show_default=True
)
@click.option(
    "--top-k", type=click.IntRange(1), default=None, metavar="N", help="draw from the N likeliest  [default: all]"
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="N", help="of the draws", show_default=True
)
@arguments.weights
@arguments.trusted
@arguments.accepted
def command(
    run: str, prompt: str, count: int, temperature: float, top_k: int | None, seed: int, weights: str, trust: bool,
    accept: bool,
) -> as_json.Found:  # fmt: skip
    """Continue a text with the language model of a RUN."""
    past = arguments.saved_run(run, trust, accept)
    from cli.progress import tell
    from cli.sampling import sample

    text = sample(past, prompt, weights=weights, count=count, temperature=temperature, top_k=top_k, seed=seed)
    tell(text)
    return {"run": run, "prompt": prompt, "text": text}
