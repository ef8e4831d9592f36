"""What learns and what stays, kind by kind, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lora_studio.models.accounting import ModuleCount, ParameterCount
from lora_studio.models.description import CLASS_HEAD
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice


def table(count: ParameterCount, voice: Voice) -> str:
    """Return the table of an adapter's parameters, with its sum and a sentence on the whole."""
    titles = (
        f"<th>{voice('module_name')}</th><th class=n>{voice('module_count')}</th>"
        f"<th class=n>{voice('module_shape')}</th><th class=n>{voice('module_frozen')}</th>"
        f"<th class=n>{voice('module_adapter')}</th><th class=n>{voice('module_saved')}</th>"
    )
    rows = "".join([*_layers(count.per_module), *_others(count, voice)])
    return (
        '<div class="ls-scroll"><table class="ls-table ls-parameters">'
        f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot>{_sum(count, voice)}</tfoot></table></div>"
        f"{render.quiet(_sentence(count, voice))}"
    )


def _layers(counted: Iterable[ModuleCount]) -> Iterable[str]:
    for layers in counted:
        yield _row(
            f"<code>{escape(layers.name)}</code>",
            f"{layers.count:,}",
            f"{layers.d_in:,} → {layers.d_out:,}",
            layers.full,
            layers.adapter,
            percent(layers.saved_percent),
        )


def _others(count: ParameterCount, voice: Voice) -> Iterable[str]:
    for module in count.whole:
        yield _row(
            f"<code>{escape(module.name)}</code>",
            "1",
            f"{module.rows:,} × {module.columns:,}",
            module.parameters,
            module.parameters,
            voice("module_head" if module.name == CLASS_HEAD else "module_whole"),
        )
    if count.biases:
        yield _row(voice("module_biases"), "", "", count.biases, count.biases, "")


def _sum(count: ParameterCount, voice: Voice) -> str:
    frozen = sum(layers.full for layers in count.per_module)
    adapter = sum(layers.adapter for layers in count.per_module)
    others = sum(module.parameters for module in count.whole) + count.biases
    return _row(
        voice("module_sum"),
        f"{sum(layers.count for layers in count.per_module) + len(count.whole):,}",
        "",
        frozen + others,
        adapter + others,
        percent(100 * (1 - (adapter + others) / (frozen + others))),
    )


def _sentence(count: ParameterCount, voice: Voice) -> str:
    return voice(
        "module_total",
        trainable=numbers.count(count.trainable),
        total=numbers.count(count.total),
        percent=f"{count.percent:.3g}",
        size=numbers.size(count.adapter_bytes),
    )


def _row(name: str, layers: str, shape: str, frozen: int, adapter: int, saved: str) -> str:
    return (
        f"<tr><td>{name}</td><td class=n>{layers}</td><td class=n>{shape}</td>"
        f'<td class="n frozen" title="{frozen:,}">{numbers.count(frozen)}</td>'
        f'<td class="n trained" title="{adapter:,}">{numbers.count(adapter)}</td>'
        f"<td class=n>{escape(saved)}</td></tr>"
    )


def percent(share: float) -> str:
    """Return a saving: 98.4 %, 99.97 %, −12 %; never a rounded 100 %."""
    if share >= 99.95:
        return f"{min(share, 99.999):.3f} %"
    return f"{share:.1f} %".replace("-", "−")
