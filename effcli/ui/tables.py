"""Results as tables."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from effcli.safe import safe
from effcli.ui.rows import rows_of_some
from effcli.units import clock, count, flops, size


def plain_table(title: str, *columns: str) -> Table:
    """An empty table: names at the left, figures at the right."""
    shown = Text(safe(title), "bold")
    table = Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        is_name = number == 0
        justify: Literal["left", "right"] = "left" if is_name else "right"
        table.add_column(
            name,
            justify=justify,
            overflow="fold" if is_name else "ellipsis",
            no_wrap=not is_name,
            min_width=8 if is_name else None,
        )
    return table


def pairs_table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values."""
    shown = Text(safe(title), "bold")
    table = Table(title=shown, title_justify="left", box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(safe(value)))
    return table


def corpus_table(summary: Mapping[str, Any]) -> Table:
    """What `eff prepare` made."""
    table = plain_table(
        f"{summary['corpus']}  ({summary['tokenizer']})",
        "split",
        "tokens",
        "documents",
        "text",
        "bytes/token",
    )
    names = [name for name in ("train", "val", "test", "holdout") if name in summary["splits"]]
    for name in names:
        split = summary["splits"][name]
        ratio = split["bytes"] / split["tokens"] if split["tokens"] else 0
        table.add_row(
            name,
            count(split["tokens"]),
            f"{split['documents']:,}",
            size(split["bytes"]),
            f"{ratio:.2f}",
        )
    return table


def report_table(report: Mapping[str, Any]) -> Table:
    """What a run came to."""
    seconds, energy = report["seconds"], report["energy"]
    rows = [
        ("command", f"{report['command']}, {report['status']}"),
        ("parameters", f"{report['parameters']:,}"),
        ("steps", f"{report['steps']:,}"),
        ("tokens", f"{count(report['tokens'])} ({count(report['unique_tokens'])} different ones)"),
    ]
    if held_out := report["held_out"]:
        rows.append(("held-out loss", f"{held_out['loss']:.4f} nats per token"))
        rows.append(("perplexity", f"{held_out['perplexity']:.2f} per token"))
        entropy = held_out.get("entropy_bits_per_byte")
        least = f"; the text itself has {entropy:.4f}" if entropy else ""
        rows.append(("bits per byte", f"{held_out['bits_per_byte']:.4f}{least}"))
    if floors := report["floors"]:
        rows.append(("counting alone", ", ".join(f"{n} {loss:.2f}" for n, loss in floors.items())))
    rows += rows_of_some(report)
    spent = {a: f for a, f in report["flops"].items() if f}
    rows.append(("FLOPs", ", ".join(f"{a} {flops(f)}" for a, f in spent.items()) or "0"))
    timed = {a: s for a, s in seconds.items() if s >= 0.05}
    rows.append(("seconds", ", ".join(f"{a} {s:.1f}" for a, s in timed.items())))
    rows.append(
        (
            "speed",
            f"{count(report['tokens_per_second'])} tokens/s, {report['mfu']:.0%} of "
            f"{report['peak_flops_per_second'] / 1e12:.2f} TFLOP/s",
        )
    )
    joules = energy["joules"]
    told = energy["source"] if joules is None else f"{count(joules)}J, {energy['source']}"
    rows.append(("energy", told))
    rows.append(("memory", size(report["peak_memory_bytes"])))
    if report["cost"] is not None:
        rows.append(("cost", f"{report['cost']:.4f}"))
    if tuning := report["tuning"]:
        chosen = ", ".join(f"{n} {v:.4g}" for n, v in tuning["chosen"].items())
        rows.append(
            (
                "tuning",
                f"trials {tuning['trials']}, {flops(tuning['flops'])} FLOPs, "
                f"{clock(tuning['seconds'])}, not counted above; chose {chosen}",
            )
        )
    return pairs_table(report["run"], rows)


def settings_table(plan: Mapping[str, Any]) -> Table:
    """Every setting, its value, and where that came from."""
    table = plain_table("settings", "setting", "value", "from")
    for name, entry in plan["settings"].items():
        cells = (name, str(entry["value"]), entry["from"])  # which may be the name of a file
        table.add_row(*(Text(safe(cell)) for cell in cells))
    return table


def plan_tables(plan: Mapping[str, Any]) -> list[Table]:
    """What a dry run would do."""
    forecast = plan["forecast"]
    costs = [
        ("corpus", plan["corpus"]),
        ("device", plan["device"]),
        ("parameters", f"{forecast['parameters']:,}"),
        ("optimizer", plan["optimizer"]),
        ("steps", f"{forecast['steps']:,}"),
        ("tokens", f"{count(forecast['tokens'])}, {forecast['epochs']:.2f} times the corpus"),
        ("FLOPs", flops(forecast["flops"])),
        ("tuning before", f"{flops(plan['tuning_flops'])} FLOPs"),
        (
            "time",
            f"about {clock(forecast['seconds'])} of training, at {plan['assumed_mfu']:.0%} of "
            f"{plan['peak_flops_per_second'] / 1e12:.2f} TFLOP/s",
        ),
        (
            "memory",
            f"about {size(forecast['memory_bytes'])}, micro-batch {forecast['micro']}",
        ),
    ]
    costs = [row for row in costs if row[0] != "tuning before" or plan["tuning_flops"]]
    routing = plain_table("optimizer", "tensors", "rule", "rate", "decay")
    for group in plan["routing"]:
        names = [name.removesuffix(".weight") for name in group["tensors"]]
        listed = ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")
        routing.add_row(
            Text(safe(listed)),
            Text(safe(group["rule"])),
            f"{group['lr']:g}",
            f"{group['weight_decay']:g}",
        )
    return [settings_table(plan), routing, pairs_table("plan", costs)]


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Several runs beside each other."""
    gains = ("× tokens", "× FLOPs", "× s")
    table = plain_table(
        "comparison", "run", "loss", "bits/byte", "tokens", "FLOPs", "seconds", *gains
    )
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    names = [PurePath(row["run"]).name for row in comparison["runs"]]
    is_clear = len(set(names)) == len(names)
    for row, short in zip(comparison["runs"], names, strict=True):
        name = short if is_clear else row["run"]
        name = name if row["status"] == "complete" else f"{name} ({row['status']})"
        cells = [_gain(row["multipliers"].get(unit)) for unit in ("tokens", "flops", "seconds")]
        cells = ["reference", "", ""] if row["is_reference"] else cells
        losses = ["-" if row[k] is None else f"{row[k]:.4f}" for k in ("loss", "bits_per_byte")]
        spent = [count(row["tokens"]), flops(row["flops"]), f"{row['seconds']:.1f}"]
        table.add_row(Text(safe(name)), *losses, *spent, *cells)
    return table


def _gain(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2f}"


_LOOKS = {"ok": "green", "note": "yellow", "missing": "bold red"}


def doctor_table(findings: Mapping[str, Any]) -> Table:
    """What `eff doctor` found, and below each lack what to do about it."""
    verdict = "training can work here" if findings["ready"] else "training cannot work here"
    table = Table(title=Text(verdict, "bold"), title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    group = None
    for row in findings["rows"]:
        if row["group"] != group and group is not None:
            table.add_row()
        group, status = row["group"], row["status"]
        shown = Text(safe(row["value"]))
        if row["hint"]:
            shown.append(f"\n{safe(row['hint'])}", "dim")
        table.add_row(Text(status, _LOOKS[status]), Text(safe(row["name"])), shown)
    return table
