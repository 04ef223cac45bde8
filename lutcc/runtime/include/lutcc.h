/* lutcc.h - run an exported lutcc model from C or C++, without Python and without TVM.
 *
 * `artifact.export_c("folder")` writes this file, model.h (names and sizes of one model), the
 * model's kernels (kernels-<isa>.so), its packed tables (model.blob) and an example. Link the
 * program against the kernels, and define LUTCC_IMPLEMENTATION in exactly one source file before
 * including this header: it then holds the one function that the kernels call, to report errors.
 *
 * Kernels are re-entrant: any number of threads may call them at once, each with a workspace of
 * its own. Nothing is allocated. The program must run on a CPU with the features that model.h
 * lists; kernels do not check that.
 */
#ifndef LUTCC_H
#define LUTCC_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Element types, as DLPack codes them. */
enum { LUTCC_INT = 0, LUTCC_UINT = 1, LUTCC_FLOAT = 2 };

#define LUTCC_MAX_TENSORS 32 /* inputs and outputs of one model */
#define LUTCC_ALIGNMENT 64   /* bytes: blob and workspace start at a multiple of this */

/* A DLPack tensor in CPU memory (the layout of DLTensor). Strides are counted in elements. */
typedef struct {
  void* data;
  int32_t device_type; /* 1: CPU */
  int32_t device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} lutcc_tensor;

/* An argument of a kernel (the layout of TVMFFIAny). */
typedef struct {
  int32_t type_index; /* 1: integer, 7: tensor */
  uint32_t zero_padding;
  union {
    int64_t v_int64;
    void* v_ptr;
  } value;
} lutcc_any;

/* The entry function of a model: its symbol is __tvm_ffi_<name>. */
typedef int (*lutcc_entry)(void* self, const lutcc_any* args, int32_t num_args, lutcc_any* result);

/* Fill in a tensor. `strides` may be NULL for a contiguous one: they are then computed into
 * `own_strides`, which must hold `ndim` numbers and live as long as the tensor. */
static inline void lutcc_fill(lutcc_tensor* t, void* data, int code, int bits, int ndim,
                              int64_t* shape, int64_t* strides, int64_t* own_strides) {
  int64_t step = 1;
  int i;
  memset(t, 0, sizeof *t);
  t->data = data;
  t->device_type = 1;
  t->ndim = ndim;
  t->code = (uint8_t)code;
  t->bits = (uint8_t)bits;
  t->lanes = 1;
  t->shape = shape;
  if (strides) {
    t->strides = strides;
    return;
  }
  for (i = ndim - 1; i >= 0; --i) {
    own_strides[i] = step;
    step *= shape[i];
  }
  t->strides = own_strides;
}

/* Bytes of workspace for a batch of n rows. */
static inline int64_t lutcc_workspace_bytes(int64_t fixed, int64_t per_row, int64_t per_thread,
                                            int64_t n) {
  return fixed + per_row * n + per_thread + LUTCC_ALIGNMENT;
}

/* Run a model on one thread. Returns 0, or non-zero after an error was reported through
 * lutcc_last_error(). Two-dimensional inputs may have any positive strides, other tensors are
 * contiguous; inputs and outputs are aligned to their element size. */
static inline int lutcc_run(lutcc_entry entry, lutcc_tensor* inputs, int num_inputs, void* blob,
                            int64_t blob_bytes, void* workspace, int64_t workspace_bytes,
                            lutcc_tensor* outputs, int num_outputs) {
  lutcc_any args[LUTCC_MAX_TENSORS + 3], result;
  lutcc_tensor blob_tensor, workspace_tensor;
  int64_t own_strides[2];
  int i, k = 0;
  if (num_inputs < 0 || num_outputs < 0 || num_inputs + num_outputs > LUTCC_MAX_TENSORS) return -1;
  memset(args, 0, sizeof args);
  memset(&result, 0, sizeof result);
  lutcc_fill(&blob_tensor, blob, LUTCC_UINT, 8, 1, &blob_bytes, NULL, &own_strides[0]);
  lutcc_fill(&workspace_tensor, workspace, LUTCC_UINT, 8, 1, &workspace_bytes, NULL,
             &own_strides[1]);
  for (i = 0; i < num_inputs; ++i) args[k++].value.v_ptr = &inputs[i];
  args[k++].value.v_ptr = &blob_tensor;
  args[k++].value.v_ptr = &workspace_tensor;
  for (i = 0; i < num_outputs; ++i) args[k++].value.v_ptr = &outputs[i];
  for (i = 0; i < k; ++i) args[i].type_index = 7;
  args[k].type_index = 1;
  args[k++].value.v_int64 = 1; /* threads */
  return entry(NULL, args, k, &result);
}

/* Message of the last error in this thread; empty when there was none. */
const char* lutcc_last_error(void);

#ifdef LUTCC_IMPLEMENTATION
static __thread char lutcc_error_text[512];

/* Called by the kernels. */
__attribute__((visibility("default"))) void TVMFFIErrorSetRaisedFromCStrParts(
    const char* kind, const char** parts, int32_t num_parts) {
  int32_t i;
  size_t used = (size_t)snprintf(lutcc_error_text, sizeof lutcc_error_text, "%s: ", kind);
  for (i = 0; i < num_parts && used < sizeof lutcc_error_text; ++i) {
    if (parts[i]) {
      used += (size_t)snprintf(lutcc_error_text + used, sizeof lutcc_error_text - used, "%s",
                               parts[i]);
    }
  }
}

const char* lutcc_last_error(void) { return lutcc_error_text; }
#endif

#ifdef __cplusplus
}
#endif
#endif /* LUTCC_H */
