"""Rows of a report's table that only some runs have."""

from collections.abc import Mapping, Sequence
from typing import Any

from effcli.units import count, size

Rows = list[tuple[str, str]]


def rows_of_some(report: Mapping[str, Any]) -> Rows:
    """What not every run has."""
    mix = report.get("mix") or {}
    shares = ", ".join(f"{name} {share:.4g}" for name, share in mix.items())
    rows = [("mix", shares)] if mix else []
    rows += _text_rows(report.get("text")) + _selection_rows(report.get("selection"))
    rows += _student_rows(report.get("student")) + _hybrid_rows(report.get("hybrid"))
    return (
        rows
        + _growth_rows(report.get("growth"))
        + _phase_rows(report.get("phase"))
        + _language_rows(report.get("languages"))
        + _beside_rows(report.get("gpt"))
    )


def _text_rows(text: Mapping[str, Any] | None) -> Rows:
    """How much the model's texts repeat themselves; nothing where none were measured."""
    if text is None:
        return []
    told = (("rep-4", "rep_4"), ("rep-16", "rep_16"), ("loops", "loop_fraction"))
    figures = [
        f"{title} {text[name]:.3f} ({text['corpus'][name]['mean']:.3f})"
        for title, name in (*told, ("distinct-2", "distinct_2"), ("gzip", "gzip_ratio"))
    ]
    verdict = "collapsed" if text["collapsed"] else "not collapsed"
    return [("its texts", f"{verdict}; beside the corpus' own: {', '.join(figures)}")]


def _selection_rows(chosen: Mapping[str, Any] | None) -> Rows:
    """What a selective run read, and what choosing cost; nothing for any other."""
    if chosen is None:
        return []
    eta, precision = chosen["contamination"], chosen["precision"]
    read = [f"{chosen['ratio']:.0%} of the pool"]
    if eta is not None:
        read.append(f"{eta:.0%} of it not like trusted text")
    if precision is not None:
        read.append(f"{precision:.1%} of the choice labeled as good")
    costs = [
        f"{chosen[f'overhead_{when}']:.2%} of the seconds and {chosen[f'flops_{when}']:.2%} "
        f"of the FLOPs {where}"
        for when, where in (("in_loop", "in the loop"), ("all_in", "all in"))
    ]
    return [("chosen", ", ".join(read)), ("choosing", "; ".join(costs))]


def _student_rows(made: Mapping[str, Any] | None) -> Rows:
    """What a distillation made; nothing for any other run."""
    if made is None:
        return []
    low = "" if made["is_trained_in_low_bits"] else ", rounded after training"
    file = f"{size(made['file_bytes'])}, {made['ratio_total']:.1f} times smaller than float32"
    rows = [("student", f"{made['file']}, {made['bits']:g} bits{low}: {file}")]
    if made["ratio_linear"] is not None:
        linear = f"{made['linear_bits_per_weight']:.3f} bits per weight"
        rows.append(("its matrices", f"{linear}, {made['ratio_linear']:.1f} times smaller"))
    gap = f"{made['loss']:.4f}, {made['roundtrip_gap']:+.4f} by packing"
    rows.append(("its loss", f"{gap}; logits within {made['logit_gap']:.1g} of the trained ones"))
    if made["codes"]:
        rows.append(("its codes", _codes(made["codes"])))
    if made["teacher_loss"] is not None:
        rows.append(("teacher", f"held-out loss {made['teacher_loss']:.4f}"))
    return rows


def _codes(looks: Sequence[Mapping[str, Any]]) -> str:
    """What the codes did by the last look."""
    last = looks[-1]
    told = f"{last['zeros']:.1%} zeros, {last['dead_zone']:.1%} near a threshold"
    if last["flips"] is None:
        return told
    return f"{told}, {last['flips']:.2%} changed since step {looks[-2]['step']:,}"


def _hybrid_rows(parts: Mapping[str, Any] | None) -> Rows:
    """What the parts of a hybrid did; nothing for any other run."""
    if parts is None:
        return []
    rows = []
    if parts["multiplier_mean"] is not None:
        taken = f"{parts['adopted']} of {parts['decisions']} proposals adopted"
        rows.append(("controller", f"mean multiplier {parts['multiplier_mean']:.3f}, {taken}"))
    if parts["constraint_activation_rate"] is not None:
        radius = parts["final_radius"]
        final = "" if radius is None else f", final radius {radius:.4g}"
        rows.append(("trust region", f"active {parts['constraint_activation_rate']:.1%}{final}"))
    rows.append(("probes", f"{parts['overhead']:.1%} of the FLOPs of training"))
    return rows


def _growth_rows(sizes: Sequence[Mapping[str, Any]] | None) -> Rows:
    """Every size of a model that grew; nothing for any other run."""
    if sizes is None:
        return []
    told = []
    for one in sizes:
        size = f"width {one['width']}, {one['layers']} layers"
        if one["difference"] is not None:
            size += f" from {count(one['tokens'])} tokens (logits apart {one['difference']:.0e})"
        told.append(size)
    return [("growth", "; ".join(told))]


def _phase_rows(found: Mapping[str, Any] | None) -> Rows:
    """What the phases of a model do; nothing for any other."""
    if found is None:
        return []
    near, *_ = found["coherence"].values() or [0.0]
    told = [f"coherence {near:.3f} next to each other, {found['mean_coherence']:.3f} in all"]
    if found["rotation_std"] is not None:
        told.append(f"increments spread by {found['rotation_std']:.3f} rad")
    rows = [("phases", ", ".join(told))]
    memory = [f"{found['state_floats']:,} numbers for a text of any length"]
    if found["frame_potential"] is not None:
        least = f"{found['welch_bound']:.4f} is the least"
        memory.append(f"overlap of keys {found['frame_potential']:.4f}, {least}")
    rows.append(("memory of a text", ", ".join(memory)))
    if found["concepts_used"] is not None:
        rows.append(("concepts", f"{found['concepts_used']:.0%} in use"))
    return rows


def _language_rows(found: Mapping[str, Any] | None) -> Rows:
    """How well each language is spoken; nothing where there is one alone."""
    if found is None:
        return []
    spoken = (
        f"{name} {one['loss']:.4f} ({one['bits_per_byte']:.3f} bits/byte)"
        for name, one in found["held_out"].items()
    )
    rows = [("languages", ", ".join(spoken))]
    if found["retrieval"] is not None:
        shares = ", ".join(f"{ways} {share:.0%}" for ways, share in found["retrieval"].items())
        rows.append(("finds what means the same", f"{shares} of {found['pairs']} texts"))
    return rows


def _beside_rows(gpt: Mapping[str, Any] | None) -> Rows:
    """The GPT of equal size; nothing where there is none."""
    if gpt is None:
        return []
    loss = f"held-out loss {gpt['held_out']['loss']:.4f}"
    return [("GPT of this size", f"{loss}, {gpt['parameters']:,} parameters: {gpt['run']}")]
