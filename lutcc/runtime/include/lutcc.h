/* lutcc.h - load and run lutcc artifacts from C and C++, without Python and torch.
 *
 *     lutcc_model* model = NULL;
 *     if (lutcc_load("model.lutcc", NULL, &model) != LUTCC_OK) return fail(lutcc_error());
 *     int64_t shape[2] = {rows, 512};
 *     lutcc_tensor x = lutcc_dense(data, LUTCC_FLOAT, 32, 2, shape), y = {0};
 *     if (lutcc_run(model, &x, 1, &y, 1) != LUTCC_OK) return fail(lutcc_error());
 *     ... y.data, y.shape ...
 *     lutcc_tensor_free(&y);
 *     lutcc_free(model);
 *
 * An artifact is written by `artifact.save("model.lutcc", packed=True)` in Python, and serves
 * Python and C alike. Every function may be called from any thread, and one model from any number
 * of threads at once; only lutcc_free needs that nobody uses the model any more. Nothing is thrown.
 */
#ifndef LUTCC_H
#define LUTCC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__
#define LUTCC_API __attribute__((visibility("default")))
#else
#define LUTCC_API
#endif

/* Grows when a function or struct changes. */
#define LUTCC_ABI_VERSION 1

/* What functions return. The text that goes with it is lutcc_error(). */
enum {
  LUTCC_OK = 0,
  LUTCC_INVALID = 1,    /* an argument is wrong: NULL, dtype, shape, values */
  LUTCC_ARTIFACT = 2,   /* the artifact is missing, damaged, of another version, or not packed */
  LUTCC_CPU = 3,        /* no kernels in it run on this processor */
  LUTCC_DEPENDENCY = 4, /* TVM's runtime, which exact layers need, or a symbol is missing */
  LUTCC_KERNEL = 5,     /* a kernel failed */
  LUTCC_MEMORY = 6      /* there is not enough memory */
};

/* Kinds of elements, as DLPack codes them. */
enum { LUTCC_INT = 0, LUTCC_UINT = 1, LUTCC_FLOAT = 2, LUTCC_BFLOAT = 4, LUTCC_BOOL = 6 };

/* The layout of DLDataType: float32 is {LUTCC_FLOAT, 32, 1}, bool {LUTCC_BOOL, 8, 1}. */
typedef struct lutcc_dtype {
  uint8_t code, bits;
  uint16_t lanes;
} lutcc_dtype;

/* The layout of DLTensor. Strides count elements; NULL means row-major without gaps. */
typedef struct lutcc_tensor {
  void* data;
  int32_t device_type; /* 1: CPU */
  int32_t device_id;
  int32_t ndim;
  lutcc_dtype dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} lutcc_tensor;

/* One input or output of a model. Strings and arrays live as long as the model. */
typedef struct lutcc_spec {
  const char* name;
  const char* dtype_name; /* "float32", "bfloat16", "uint8", "int8", "int32", "int64", "bool" */
  lutcc_dtype dtype;
  int32_t ndim;               /* at most LUTCC_MAX_NDIM */
  const char* const* symbols; /* of each dimension: NULL where its size is fixed */
  const int64_t* sizes;       /* of each dimension: its size, or what its symbol is multiplied by */
} lutcc_spec;

#define LUTCC_MAX_NDIM 8

/* How to load. Start from LUTCC_OPTIONS; every NULL and 0 is a default. */
typedef struct lutcc_options {
  size_t struct_size; /* sizeof(lutcc_options) */
  const char* isa;    /* take this variant ("avx2", "avx512", ...); NULL: the best one */
  const char* max_isa;     /* behave as if the CPU had no more than this level ("none": not even
                              AVX2); NULL: what the environment's LUTCC_MAX_ISA says */
  const char* temp_folder; /* where kernels are unpacked; NULL: TMPDIR, or /tmp */
  int32_t num_threads;     /* that a call may use, the calling one among them; 0: one */
  /* For models of kind "relax" alone: */
  const char* tvm_ffi;     /* path of libtvm_ffi.so; NULL: LUTCC_TVM_FFI, or the linker's search */
  const char* tvm_runtime; /* path of libtvm_runtime.so; NULL: LUTCC_TVM_RUNTIME, or the search */
} lutcc_options;

#define LUTCC_OPTIONS {sizeof(lutcc_options), NULL, NULL, NULL, 0, NULL, NULL}

typedef struct lutcc_model lutcc_model;

/* LUTCC_ABI_VERSION of the library; a program may compare it with that of its header. */
LUTCC_API int32_t lutcc_abi_version(void);

/* Text of the last error in this thread (never NULL): what, where, and how to mend it. */
LUTCC_API const char* lutcc_error(void);

/* Load an artifact: a model.lutcc file or folder. Format version, sizes, hashes and CPU features
 * are checked before anything in it is opened. `options` may be NULL. After an error *model is
 * NULL. */
LUTCC_API int lutcc_load(const char* path, const lutcc_options* options, lutcc_model** model);

/* Release a model; NULL is allowed. */
LUTCC_API void lutcc_free(lutcc_model* model);

/* Run the model on the calling thread, and beside it on as many as the options allow and the batch
 * is worth. The numbers do not depend on how many there are.
 *
 * Inputs are CPU tensors of the model's dtypes and shapes; the batch may be any size, 0 too. Any
 * strides are allowed; what kernels cannot read in place is copied. Outputs are either tensors of
 * the caller, of the right shape, with any strides, that overlap no input; or all zero ({0}), and
 * then the library fills them in, and lutcc_tensor_free releases them. After an error the contents
 * of outputs are undefined, and those that were all zero are so again. */
LUTCC_API int lutcc_run(const lutcc_model* model, const lutcc_tensor* inputs, int32_t num_inputs,
                        lutcc_tensor* outputs, int32_t num_outputs);

/* Release an output that the library allocated, and make it all zero. */
LUTCC_API void lutcc_tensor_free(lutcc_tensor* tensor);

/* Number of inputs (outputs) of a model; *specs, unless NULL, points to as many descriptions. */
LUTCC_API int32_t lutcc_inputs(const lutcc_model* model, const lutcc_spec** specs);
LUTCC_API int32_t lutcc_outputs(const lutcc_model* model, const lutcc_spec** specs);

/* The variant that was chosen ("avx2", ...), and the kind of model: "ir" (look-up kernels alone) or
 * "relax" (with exact layers). Empty for NULL. */
LUTCC_API const char* lutcc_isa(const lutcc_model* model);
LUTCC_API const char* lutcc_kind(const lutcc_model* model);

/* The manifest.json of the artifact, as text. Empty for NULL. */
LUTCC_API const char* lutcc_manifest(const lutcc_model* model);

/* Return a row-major tensor over `data`. `shape` must live as long as the tensor. */
static inline lutcc_tensor lutcc_dense(void* data, int code, int bits, int ndim, int64_t* shape) {
  lutcc_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.device_type = 1;
  t.ndim = ndim;
  t.dtype.code = (uint8_t)code;
  t.dtype.bits = (uint8_t)bits;
  t.dtype.lanes = 1;
  t.shape = shape;
  return t;
}

/* Fill in the shape of an input or output for a value of the model's symbol; return the number of
 * elements. For specs with one symbol or none. */
static inline int64_t lutcc_shape(const lutcc_spec* spec, int64_t n, int64_t* shape) {
  int64_t count = 1;
  int32_t axis;
  for (axis = 0; axis < spec->ndim; ++axis) {
    shape[axis] = spec->symbols[axis] ? spec->sizes[axis] * n : spec->sizes[axis];
    count *= shape[axis];
  }
  return count;
}

#ifdef __cplusplus
}
#endif
#endif /* LUTCC_H */
