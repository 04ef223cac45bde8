// The part of TVM's FFI that lutcc uses, declared here so that TVM's headers are not needed.
// A test compares the layouts with those of tvm/ffi/c_api.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "lutcc.h"

namespace lutcc {

// TVMFFIObject: the header of every object.
struct TvmObject {
  uint64_t ref_count;
  int32_t type_index;
  uint32_t padding;
  void (*deleter)(void* self, int flags);
};

// TVMFFIAny: an argument or result.
struct TvmAny {
  int32_t type_index;
  uint32_t zero_padding;
  union {
    int64_t integer;
    const void* pointer;
    const char* text;
    TvmObject* object;
  };
};

enum TvmType : int32_t {
  kTvmNone = 0,
  kTvmInt = 1,
  kTvmBool = 2,
  kTvmDLTensorPtr = 7,
  kTvmRawStr = 8,
  kTvmObjects = 64,  // this and above: objects, which are counted
  kTvmTensor = 70,
  kTvmArray = 71,
};

// TVMFFIByteArray.
struct TvmBytes {
  const char* data;
  size_t size;
};

// The first fields of TVMFFIErrorCell, which follows the header of an error.
struct TvmErrorCell {
  TvmBytes kind, message;
};

// The first fields of TVMFFISeqCell, which follows the header of an array.
struct TvmSeqCell {
  const TvmAny* data;
  int64_t size;
};

// DLManagedTensor.
struct ManagedTensor {
  lutcc_tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor* self);
};

// Kind and message of an error object.
void tvm_error_text(const TvmObject* error, std::string& kind, std::string& message);

}  // namespace lutcc
