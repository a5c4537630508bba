"""Scores of one or two models on a split, with what they are worth: their intervals, the gain, and cautions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..evaluation.outcome import ITC_ONLY, Outcome
from ..evaluation.recall import MEAN
from ..evaluation.uncertainty import Difference, Interval
from .tables import LEGEND, RECALLS, table

FEW = 50  # pictures of a split whose scores are not worth much
TELLING = 6  # queries that must all get better before chance is ruled out: of 5, one in 16 pairs of models has as many
LABELS = RECALLS | {"text_mrr": "T MRR", "image_mrr": "I MRR"}
LABELS |= {"text_median_rank": "T MedR", "image_median_rank": "I MedR"}
RANKS = "MRR: mean reciprocal rank in %; MedR: median rank, less is better"
WORTH = "[ ]: 95% interval over {media}, each with all its queries"
LIKELY = "p: how likely a gain or loss this large is if both are equally good (paired sign-flip test)"
UNTUNED, TUNED, START = "zero-shot", "tuned", "start"


class Scores(NamedTuple):
    """A model's metrics and their intervals; of a run of long ago there are none."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Protocol:
    """Models side by side by one protocol, and how much better the second of two is. The task's own protocol has no
    name."""

    name: str
    models: Mapping[str, Scores]
    gain: Mapping[str, Difference]
    count: int  # of the pictures or clips that queries belong to


def key_of(protocol: str) -> str:
    """What files call a protocol."""
    return protocol.lower().replace(" ", "_")


def by_protocol(outcomes: Mapping[str, Outcome]) -> list[Protocol]:
    """Outcomes of one or two models on the same split, by name, by all their protocols."""
    others = {name: outcome.others() for name, outcome in outcomes.items()}
    views: dict[str, Mapping[str, Outcome]] = {"": outcomes}
    for protocol in dict.fromkeys(protocol for own in others.values() for protocol in own):
        # of a model that has no other protocol, its own is this
        views[protocol] = {name: others[name].get(protocol, outcome) for name, outcome in outcomes.items()}
    made = []
    for protocol, view in views.items():
        first, *second = view.values()
        gain = second[0].gain_over(first) if second else {}
        scores = {name: Scores(outcome.metrics, outcome.intervals) for name, outcome in view.items()}
        made.append(Protocol(protocol, scores, gain, first.sample.clusters if first.metrics else 0))
    return made


def run_scores(before: Outcome, after: Outcome) -> dict[str, Any]:
    """What ``metrics.json`` says of the test split: metrics of the untuned and of the tuned model, their intervals and,
    if the two are not one, the gain; under names to which those of other protocols are added."""
    protocols = by_protocol({UNTUNED: before} if after is before else {UNTUNED: before, TUNED: after})
    found: dict[str, Any] = {"intervals": {}, "gain": {}}
    for protocol in protocols:
        end = f"_{key_of(protocol.name)}" if protocol.name else ""
        untuned = protocol.models[UNTUNED]
        for key, scores in ((f"test{end}", protocol.models.get(TUNED, untuned)), (f"zero_shot_test{end}", untuned)):
            found |= {key: scores.metrics}
            found["intervals"][key] = scores.intervals
        found["gain"][f"test{end}"] = _told(protocol.gain)
    return found


def start_scores(metrics: dict[str, Any], begun: Outcome, after: Outcome) -> None:
    """Add to a run's metrics what the weights that it began with score on the test split, which are those of another
    run, and the gain over these."""
    metrics["start_test"] = begun.metrics
    metrics["intervals"] = {"start_test": begun.intervals}
    metrics["gain"] = {"start_test": _told(after.gain_over(begun))}


def scores_json(protocols: Sequence[Protocol]) -> dict[str, Any]:
    """The figures of one or two models for a file: those of the last one under ``metrics`` and the names of other
    protocols, with ``intervals``; those of the first of two in the same form under its name, and the ``gain``."""

    def told(name: str) -> dict[str, Any]:
        models = {key_of(protocol.name) or "metrics": protocol.models[name] for protocol in protocols}
        intervals = {key: model.intervals for key, model in models.items()}
        return {key: model.metrics for key, model in models.items()} | {"intervals": intervals}

    *first, last = protocols[0].models
    found = told(last)
    for name in first:
        gain = {key_of(protocol.name) or "metrics": _told(protocol.gain) for protocol in protocols}
        found |= {name.replace("-", "_"): told(name), "gain": gain}
    return found


def _told(gain: Mapping[str, Difference]) -> dict[str, dict[str, float]]:
    return {name: asdict(difference) for name, difference in gain.items()}


def scores_table(protocols: Sequence[Protocol], names: Mapping[str, str] | None = None, media: str = "pictures") -> str:
    """A row for every metric. Of one model there is a column for each protocol; of two there is a table for each
    protocol, with the gain.

    Args:
        names: what to call protocols, by their own names.
        media: what is resampled.
    """
    names = names or {}
    keys = list(next(iter(protocols[0].models.values())).metrics)
    labels = [LABELS.get(key, key) for key in keys]
    shown = []
    if len(protocols[0].models) == 1:
        models = [next(iter(protocol.models.values())) for protocol in protocols]
        rows = [[label, *(_cell(key, model) for model in models)] for key, label in zip(keys, labels, strict=True)]
        shown.append(table(["", *(names.get(protocol.name, protocol.name) for protocol in protocols)], rows))
    else:
        for protocol in protocols:
            rows = [
                [label, *(_cell(key, model) for model in protocol.models.values()), *_gain(protocol.gain.get(key))]
                for key, label in zip(keys, labels, strict=True)
            ]
            head = names.get(protocol.name, protocol.name)
            first, second = protocol.models
            change = "gain" if first == UNTUNED else f"{second} - {first}"
            shown.append(table([head, first, second, change, "p"], rows))
    legend = [LEGEND, RANKS] if MEAN in keys else []
    legend += [WORTH.format(media=media)] + [LIKELY] * (len(protocols[0].models) > 1)
    return "\n".join(["\n\n".join(shown), *legend])


def _cell(key: str, scores: Scores) -> str:
    value = f"{scores.metrics[key]:.1f}"
    if key not in scores.intervals:
        return value
    low, high = scores.intervals[key]
    return f"{value} [{low:.1f}, {high:.1f}]"


def _gain(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]", f"{difference.p:.3f}"


def caution(protocol: Protocol, queries: int, *, split: str = "test", media: str = "pictures") -> str:
    """A line on what a split cannot tell: of two models, if their gain may be chance or the split is small; of one, if
    the split is small. Nothing otherwise.

    Args:
        queries: of the first metric.
    """
    first = next(iter(protocol.models.values())).metrics
    metric = MEAN if MEAN in protocol.gain else next(iter(first), "")
    gain = protocol.gain.get(metric)
    if not first or (protocol.count >= FEW and (gain is None or not gain.by_chance)):
        return ""
    label = LABELS.get(metric, metric)
    label = "mean recall" if metric == MEAN else label
    least = (gain.high - gain.low) / 2 if gain else 100 * TELLING / queries
    word = "gain" if UNTUNED in protocol.models or not gain else "difference"
    told = f"a {word} of {label} below {least:.1f} points" if least <= 100 else f"any {word} of {label}"
    return f"caution: {protocol.count:,} {split} {media} cannot tell {told} from chance"


def run_summary(metrics: dict[str, Any]) -> str:
    """A finished run beside the untuned model, if it is not that itself: by the order of candidates that the run
    settled, and, where ITM has a part in it, by ITC alone, which is what a search without ``--rerank`` shows."""
    weights, best = metrics["weights"], metrics.get("best_step")
    warm = "init_from" in metrics
    views = {"zero_shot": UNTUNED} | ({"tuned": TUNED} if metrics["steps"] and (best != 0 or warm) else {})
    lines = ["no scores: split test comes without right answers"]
    if metrics["test"]:
        protocols = _run_protocols(metrics, views)
        names = {"": UNTUNED, ITC_ONLY: f"{UNTUNED}, {ITC_ONLY}"} if len(views) == 1 else {}
        media = "clips" if "test_clips" in metrics else "pictures"
        lines = [scores_table(protocols, names, media)]
        if small := caution(protocols[0], metrics.get("test_rows", FEW), media=media):
            lines.append(small)
    if warm and metrics["test"]:
        lines.insert(0, f"{scores_table([_start_protocol(metrics)])}\n{START}: {metrics['init_from']}\n")
    for view, name in views.items():
        if choice := metrics.get("chosen", {}).get(view):
            lines.append(f"{name} ranks by {_order(**choice)}: the best on the validation split")
    if "strength" in metrics:
        tried = ", ".join(f"{key} {value:.1f}" for key, value in metrics["strengths"].items())
        best_score = max(metrics["strengths"].values())
        why = "" if metrics["validation_best"] >= best_score else ", which the split cannot tell from the best"
        lines.append(f"strength of the tuning and its validation score: {tried}; {kept_weights(metrics)}{why}")
    if metrics["steps"] and best == 0:
        model = "model that it began with" if warm else "untuned model"
        lines.append(f"tuning did not help on the validation split: the {model} is kept")
    if metrics["steps"]:
        kept = f"; those of step {best} are kept" if best and "strength" not in metrics else ""
        lines.append(
            f"{weights['trainable']:,} weights trained "
            f"({100 * weights['trainable'] / weights['model']:.2f}% of {weights['model']:,}) "
            f"in {metrics['steps']} steps and {metrics['train_seconds']:.0f} s{kept}"
        )
    return "\n".join(lines)


def kept_weights(metrics: dict[str, Any]) -> str:
    """Which weights a run kept, in words."""
    if "strength" in metrics:
        return f"strength {metrics['strength']:g} kept"
    return f"weights of step {metrics['best_step']} kept"


def _run_protocols(metrics: dict[str, Any], views: dict[str, str]) -> list[Protocol]:
    """The test split's figures of the untuned and the tuned model, and by ITC alone where they are of ITM."""
    ends = {"": "test", ITC_ONLY: f"test_{key_of(ITC_ONLY)}"}
    made = []
    for name, key in ends.items():
        keys = {shown: f"zero_shot_{key}" if view == "zero_shot" else key for view, shown in views.items()}
        if all(key in metrics for key in keys.values()):
            intervals, gain = metrics.get("intervals", {}), metrics.get("gain", {}).get(key, {})
            models = {shown: Scores(metrics[key], intervals.get(key, {})) for shown, key in keys.items()}
            differences = {metric: Difference(**told) for metric, told in gain.items()}
            count = metrics.get("test_clips", metrics.get("test_pictures", FEW))
            made.append(Protocol(name, models, differences, count))
    return made


def _start_protocol(metrics: dict[str, Any]) -> Protocol:
    """The test split's figures of the weights that training began with, and of those that it ended with."""
    intervals = metrics.get("intervals", {})
    keys = {START: "start_test", TUNED: "test"}
    models = {name: Scores(metrics[key], intervals.get(key, {})) for name, key in keys.items()}
    gain = {metric: Difference(**told) for metric, told in metrics["gain"]["start_test"].items()}
    return Protocol("", models, gain, metrics.get("test_clips", metrics.get("test_pictures", FEW)))


def _order(ranking: str, beta: float) -> str:
    """What a person is told of an order of candidates."""
    if ranking == "itc":
        return "ITC similarity alone, as aurora search does"
    more = f" + {beta:g} * ITC similarity" if beta else ""
    return f"ITM match logit{more}, as aurora search does with --rerank"
