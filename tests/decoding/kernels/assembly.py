"""Prints, for test_assembly.py, the assembly of each format's largest tile for the processor that is named.

Compiling for a processor needs none: KERNEL_FEATURES and KERNEL_LANES say what it has.
"""

from __future__ import annotations

import json
import sys

from llvmlite import binding, ir

from decoding.kernels.cpu.products import TILES
from decoding.kernels.cpu.tile import TILE_ARGUMENTS, Format, write_tile
from decoding.kernels.cpu.vectors import I64


def assembly(form: Format, cpu: str) -> str:
    rows = max(TILES)
    module = ir.Module("tile")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * TILE_ARGUMENTS), "tile")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    write_tile(builder, function.args, rows, TILES[rows], form)
    builder.ret_void()
    machine = binding.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=cpu, opt=3)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))


if __name__ == "__main__":
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    print(json.dumps({form.name: assembly(form, sys.argv[1]) for form in Format}))
