"""Writes a model for C and C++ programs: kernels, packed tables, headers and an example."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lutcc.errors import ArtifactError
from lutcc.runtime.kernel import LookupKernel
from lutcc.runtime.signature import TensorSpec

if TYPE_CHECKING:
    from lutcc.runtime.artifact import Artifact

HEADER = Path(__file__).parent / "include" / "lutcc.h"
_C_TYPES = {
    "float32": ("float", "LUTCC_FLOAT", 32),
    "uint8": ("uint8_t", "LUTCC_UINT", 8),
    "int8": ("int8_t", "LUTCC_INT", 8),
    "int32": ("int32_t", "LUTCC_INT", 32),
    "int64": ("int64_t", "LUTCC_INT", 64),
}


def export_c(artifact: Artifact, folder: str | os.PathLike[str]) -> Path:
    """Write the variant that runs here for C and C++ programs.

    Parameters
    ----------
    artifact
        An artifact of look-up kernels (of kind "ir").
    folder
        Where; it is made when it does not exist.

    Returns
    -------
    Path
        The folder, which then holds ``lutcc.h``, ``model.h``, ``model.blob``, ``kernels-<isa>.so``
        and ``example.cpp``, whose first lines say how to build it.

    Raises
    ------
    ArtifactError
        For a mixed model, a dtype that C lacks, or a folder that cannot be written.
    """
    if artifact.kind != "ir":
        raise ArtifactError(
            "a model with exact layers runs on TVM's virtual machine, not from plain C",
            fix="use TVM's C++ runtime with the kernels, or compile the look-up layers alone",
        )
    for spec in (*artifact.inputs, *artifact.outputs):
        if spec.dtype not in _C_TYPES:
            raise ArtifactError(
                f"{spec.name!r} has dtype {spec.dtype}, which the header does not know",
                fix=f"use one of {', '.join(_C_TYPES)}",
            )
    kernel = artifact.kernel
    assert isinstance(kernel, LookupKernel)
    folder = Path(folder)
    library = f"kernels-{artifact.isa}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lutcc.h").write_bytes(HEADER.read_bytes())
        (folder / library).write_bytes(artifact.file(library))
        (folder / "model.blob").write_bytes(kernel.blob.tobytes())
        (folder / "model.h").write_text(model_header(artifact, kernel), encoding="utf-8")
        (folder / "example.cpp").write_text(example(artifact, library), encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"cannot be written: {error.strerror}", where=str(folder), fix="name another folder"
        ) from error
    return folder


def model_header(artifact: Artifact, kernel: LookupKernel) -> str:
    """Return ``model.h``: the entry's declaration, sizes of blob and workspace, the signature."""
    program = kernel.program
    entry, sizes = program["entry"], program["workspace"]
    lines = [
        "/* Sizes of one model; written by lutcc, see lutcc.h. */",
        "#ifndef LUTCC_MODEL_H",
        "#define LUTCC_MODEL_H",
        '#include "lutcc.h"',
        "",
        f"/* CPU features that the kernels need: {', '.join(program['features'])} */",
        f"#define LUTCC_MODEL_BLOB_BYTES {kernel.blob.nbytes}LL",
        f"#define LUTCC_MODEL_WORKSPACE_FIXED {sizes['fixed']}LL",
        f"#define LUTCC_MODEL_WORKSPACE_PER_ROW {sizes['per_row']}LL",
        f"#define LUTCC_MODEL_WORKSPACE_PER_THREAD {sizes['per_thread']}LL",
        f"#define LUTCC_MODEL_INPUTS {len(artifact.inputs)}",
        f"#define LUTCC_MODEL_OUTPUTS {len(artifact.outputs)}",
        "",
    ]
    for kind, specs in (("INPUT", artifact.inputs), ("OUTPUT", artifact.outputs)):
        for index, spec in enumerate(specs):
            lines += _tensor_macros(f"LUTCC_MODEL_{kind}{index}", spec)
    lines += [
        "",
        "#ifdef __cplusplus",
        'extern "C"',
        "#endif",
        f"int __tvm_ffi_{entry}(void* self, const lutcc_any* args, int32_t num_args,",
        "    lutcc_any* result);",
        f"#define LUTCC_MODEL_ENTRY __tvm_ffi_{entry}",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _tensor_macros(prefix: str, spec: TensorSpec) -> list[str]:
    """Return the macros of one tensor: its C type and its shape as a function of the batch n."""
    c_type, code, bits = _C_TYPES[spec.dtype]
    shape = ", ".join(str(d) if isinstance(d, int) else f"{d[1]} * (n)" for d in spec.shape)
    return [
        f"/* {str(spec).replace('*/', '* /')} */",
        f"#define {prefix}_TYPE {c_type}",
        f"#define {prefix}_CODE {code}",
        f"#define {prefix}_BITS {bits}",
        f"#define {prefix}_NDIM {len(spec.shape)}",
        f"#define {prefix}_SHAPE(n) {{ {shape} }}",
    ]


def example(artifact: Artifact, library: str) -> str:
    """Return a C++ program that feeds raw inputs to the model and writes raw outputs."""
    tensors, inputs, outputs = [], [], []
    for kind, specs, names in (
        ("INPUT", artifact.inputs, inputs),
        ("OUTPUT", artifact.outputs, outputs),
    ):
        for index in range(len(specs)):
            macro, name = f"LUTCC_MODEL_{kind}{index}", f"{kind.lower()}{index}"
            names.append(name)
            tensors.append(f"  Tensor<{macro}_TYPE, {macro}_NDIM> {name}(")
            tensors.append(f"      {macro}_CODE, {macro}_BITS, {macro}_SHAPE(n));")
    read = [f'  if (!{name}.read(stdin)) return fail("too few bytes on stdin");' for name in inputs]
    write = [f"  {name}.write(stdout);" for name in outputs]
    return _EXAMPLE.format(
        library=library,
        tensors="\n".join(tensors),
        read="\n".join(read),
        write="\n".join(write),
        inputs=", ".join(f"{name}.view" for name in inputs),
        outputs=", ".join(f"{name}.view" for name in outputs),
    )


_EXAMPLE = """\
// Runs the model on raw little-endian inputs from stdin and writes raw outputs to stdout.
//
//   c++ -std=c++17 -O2 example.cpp {library} -Wl,-rpath,'$ORIGIN' -o example
//   ./example 4 < inputs.raw > outputs.raw      (4 rows; model.blob lies in the current folder)
#define LUTCC_IMPLEMENTATION
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "model.h"

// Owns the elements, shape and strides of one contiguous tensor.
template <typename T, int NDIM>
struct Tensor {{
  Tensor(int code, int bits, std::initializer_list<int64_t> sizes) {{
    int64_t count = 1;
    int axis = 0;
    for (int64_t size : sizes) count *= shape[axis++] = size;
    data.resize(static_cast<size_t>(count));
    lutcc_fill(&view, data.data(), code, bits, NDIM, shape, nullptr, strides);
  }}
  Tensor(const Tensor&) = delete;
  bool read(FILE* file) {{
    return std::fread(data.data(), sizeof(T), data.size(), file) == data.size();
  }}
  void write(FILE* file) {{ std::fwrite(data.data(), sizeof(T), data.size(), file); }}
  std::vector<T> data;
  int64_t shape[NDIM > 0 ? NDIM : 1], strides[NDIM > 0 ? NDIM : 1];
  lutcc_tensor view;
}};

static int fail(const char* what) {{
  std::fprintf(stderr, "%s\\n", what);
  return 1;
}}

static void* aligned(int64_t bytes) {{
  const int64_t rounded = (bytes + LUTCC_ALIGNMENT - 1) / LUTCC_ALIGNMENT * LUTCC_ALIGNMENT;
  return std::aligned_alloc(LUTCC_ALIGNMENT, static_cast<size_t>(rounded));
}}

int main(int argc, char** argv) {{
  const long long n = argc > 1 ? std::atoll(argv[1]) : 1;
  if (n < 1) return fail("usage: example ROWS < inputs.raw > outputs.raw");
  FILE* file = std::fopen("model.blob", "rb");
  void* blob = aligned(LUTCC_MODEL_BLOB_BYTES);
  if (!file || !blob || std::fread(blob, 1, LUTCC_MODEL_BLOB_BYTES, file) != LUTCC_MODEL_BLOB_BYTES)
    return fail("model.blob cannot be read");
  std::fclose(file);
  const int64_t bytes =
      lutcc_workspace_bytes(LUTCC_MODEL_WORKSPACE_FIXED, LUTCC_MODEL_WORKSPACE_PER_ROW,
                            LUTCC_MODEL_WORKSPACE_PER_THREAD, n);
  void* workspace = aligned(bytes);
  if (!workspace) return fail("out of memory");
{tensors}
{read}
  lutcc_tensor inputs[] = {{{inputs}}};
  lutcc_tensor outputs[] = {{{outputs}}};
  if (lutcc_run(LUTCC_MODEL_ENTRY, inputs, LUTCC_MODEL_INPUTS, blob,
                LUTCC_MODEL_BLOB_BYTES, workspace, bytes, outputs, LUTCC_MODEL_OUTPUTS))
    return fail(lutcc_last_error());
{write}
  std::free(workspace);
  std::free(blob);
  return 0;
}}
"""
