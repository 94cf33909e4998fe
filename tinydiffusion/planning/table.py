"""The plan as a printed table."""

from rich.console import Console
from rich.table import Table

from tinydiffusion.planning.devices import BANDWIDTH, DeviceShare
from tinydiffusion.planning.plan import Plan
from tinydiffusion.planning.quantity import duration, size


def print_plan(plan: Plan) -> None:
    """Print every number with its origin, N devices, a summary in one line, and warnings."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:  # wide enough for every column
        console = Console(stderr=True, highlight=False, markup=False, width=120)
    console.print(_sections(plan))
    console.print(_devices(plan.devices))
    for each in plan.devices:
        if each.advice:
            console.print(
                f"{each.devices} devices cannot share the batch equally: {each.advice}",
                soft_wrap=True,
            )
    console.print(plan.summary, soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)


def _sections(plan: Plan) -> Table:
    table = Table(title="plan", title_justify="left")
    for column in ("", "what", "value", "known", "of"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for section, rows in plan.sections.items():
        table.add_section()
        for number, (name, quantity) in enumerate(rows.items()):
            first = section if number == 0 else ""
            table.add_row(first, name, str(quantity), quantity.how, quantity.note)
    return table


def _devices(shares: list[DeviceShare]) -> Table:
    table = Table(title="N devices like this one, estimated", title_justify="left")
    columns = (
        "N", "pictures at once", "each sends", "a step, at least", f"at {size(BANDWIDTH)}/s",
        "pictures", "whole run", "memory: DDP", "FSDP2",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for each in shares:
        table.add_row(
            str(each.devices),
            f"{each.pictures_at_once:.1f}".removesuffix(".0"),
            size(each.sent_bytes),
            duration(each.compute_seconds),
            duration(each.step_seconds),
            str(each.pictures_seen),
            duration(each.run_seconds),
            size(each.ddp_bytes),
            size(each.fsdp_bytes),
        )
    return table
