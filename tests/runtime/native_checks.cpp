// What tests/runtime/test_native.py asks of liblutcc. Each command prints results; misuse aborts.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "lutcc.h"
#include "sha256.hpp"

namespace {

using Bytes = std::vector<char>;

Bytes read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

lutcc_model* load(const char* path, const lutcc_options* options = nullptr) {
  lutcc_model* model = nullptr;
  if (lutcc_load(path, options, &model) != LUTCC_OK) {
    std::printf("%s\n", lutcc_error());
    std::exit(1);
  }
  return model;
}

// load PATH [ISA [MAX_ISA [TEMP_FOLDER]]]; "-" leaves an option out.
int command_load(int argc, char** argv) {
  lutcc_options options = LUTCC_OPTIONS;
  const char** fields[] = {&options.isa, &options.max_isa, &options.temp_folder};
  for (int i = 3; i < argc; ++i)
    if (std::strcmp(argv[i], "-") != 0) *fields[i - 3] = argv[i];
  auto* model = reinterpret_cast<lutcc_model*>(1);
  const int status = lutcc_load(argv[2], &options, &model);
  if (status != LUTCC_OK && model) std::abort();
  std::printf("%d %s\n", status, status == LUTCC_OK ? lutcc_isa(model) : lutcc_error());
  lutcc_free(model);
  return 0;
}

void report(const char* label, int status) {
  std::printf("%s: %d %s\n---\n", label, status, status == LUTCC_OK ? "" : lutcc_error());
}

// mistakes PATH: calls that are wrong, of a model x: float32[n, 16] -> y: float32[n, 16].
int command_mistakes(int, char** argv) {
  lutcc_model* model = load(argv[2]);
  std::vector<float> numbers(77 * 16, 1.0f), space(77 * 16);
  int64_t shape[3] = {3, 16, 1}, out_shape[2] = {3, 16};
  const lutcc_tensor x = lutcc_dense(numbers.data(), LUTCC_FLOAT, 32, 2, shape);
  const lutcc_tensor out = lutcc_dense(space.data(), LUTCC_FLOAT, 32, 2, out_shape);
  const auto run = [&](const char* label, const lutcc_tensor& in, lutcc_tensor y = {}) {
    const lutcc_tensor before = y;
    report(label, lutcc_run(model, &in, 1, &y, 1));
    if (std::memcmp(&before, &y, sizeof y) != 0) std::abort();  // given back as it was
  };
  lutcc_tensor none{};
  report("no model", lutcc_run(nullptr, &x, 1, &none, 1));
  report("no inputs", lutcc_run(model, nullptr, 1, &none, 1));
  report("no outputs", lutcc_run(model, &x, 1, nullptr, 1));
  report("two inputs", lutcc_run(model, &x, 2, &none, 1));
  report("no output", lutcc_run(model, &x, 1, &none, 0));
  lutcc_tensor in = x;
  in.dtype.bits = 64;
  run("dtype", in);
  in = x;
  in.device_type = 2;
  run("device", in);
  in = x;
  in.ndim = 1;
  in.shape = shape + 1;
  run("one row", in);
  in = x;
  in.ndim = 3;
  run("rank", in);
  in = x;
  in.shape = nullptr;
  run("no shape", in);
  in = x;
  in.data = nullptr;
  run("no data", in);
  int64_t wide[2] = {3, 15}, negative[2] = {-3, 16}, huge[2] = {INT64_MAX / 8, 16};
  in = x;
  in.shape = wide;
  run("columns", in);
  in.shape = negative;
  run("negative", in);
  in.shape = huge;
  run("huge", in);
  lutcc_tensor y = out;
  y.shape = wide;
  run("output columns", x, y);
  y = out;
  y.data = nullptr;
  run("output data", x, y);
  y = out;
  y.dtype = {LUTCC_INT, 32, 1};
  run("output dtype", x, y);
  int64_t poisoned[2] = {77, 16};
  in = x;
  in.shape = poisoned;
  run("poisoned", in);
  run("fine", x, out);
  lutcc_options options = LUTCC_OPTIONS;
  lutcc_model* other = model;
  report("no path", lutcc_load(nullptr, nullptr, &other));
  if (other) std::abort();
  report("no place", lutcc_load(argv[2], nullptr, nullptr));
  options.num_threads = -1;
  report("threads", lutcc_load(argv[2], &options, &other));
  options.struct_size = 3;
  report("options", lutcc_load(argv[2], &options, &other));
  lutcc_tensor_free(nullptr);
  lutcc_tensor_free(&none);
  lutcc_free(nullptr);
  const lutcc_spec* specs = nullptr;
  if (lutcc_inputs(nullptr, &specs) || lutcc_outputs(nullptr, nullptr) || *lutcc_isa(nullptr) ||
      *lutcc_kind(nullptr) || *lutcc_manifest(nullptr))
    std::abort();
  lutcc_free(model);
  return 0;
}

// layouts PATH: tensors of many layouts, of the model y[i, j] = x[i, j] * (j + 1).
int command_layouts(int, char** argv) {
  lutcc_model* model = load(argv[2]);
  constexpr int64_t kRows = 5, kColumns = 16;
  std::vector<float> numbers(4096);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  struct Layout {
    int64_t first, row, column;  // in elements
  };
  const Layout layouts[] = {{0, 16, 1},  {1, 16, 1},   {3, 50, 1},   {0, 1, 5},    {7, 64, 3},
                            {0, 0, 1},   {0, 16, 0},   {400, -16, 1}, {500, 20, -1}, {900, -40, -2},
                            {64, 512, 32}};
  int64_t shape[2] = {kRows, kColumns};
  int checked = 0;
  for (const Layout& from : layouts)
    for (const Layout& to : layouts)
      for (const int odd : {0, 1}) {  // an output of the caller starts at an odd byte
        if (to.row == 0 || to.column == 0) continue;
        std::vector<unsigned char> space(16384 + 1, 0xee);
        int64_t in_strides[2] = {from.row, from.column}, out_strides[2] = {to.row, to.column};
        lutcc_tensor x = lutcc_dense(numbers.data(), LUTCC_FLOAT, 32, 2, shape);
        x.byte_offset = static_cast<uint64_t>(from.first) * 4;
        x.strides = in_strides;
        lutcc_tensor y = lutcc_dense(space.data() + odd, LUTCC_FLOAT, 32, 2, shape);
        y.byte_offset = static_cast<uint64_t>(to.first) * 4;
        y.strides = out_strides;
        lutcc_tensor own{};
        if (lutcc_run(model, &x, 1, &y, 1) || lutcc_run(model, &x, 1, &own, 1)) {
          std::printf("%s\n", lutcc_error());
          return 1;
        }
        if (reinterpret_cast<uintptr_t>(own.data) % 64) std::abort();
        for (int64_t i = 0; i < kRows; ++i)
          for (int64_t j = 0; j < kColumns; ++j) {
            const auto at = static_cast<size_t>(from.first + i * from.row + j * from.column);
            const float want = numbers[at] * static_cast<float>(j + 1);
            float got;
            std::memcpy(&got, space.data() + odd + 4 * (to.first + i * to.row + j * to.column), 4);
            if (got != want || static_cast<float*>(own.data)[i * kColumns + j] != want) {
              std::printf("row %d, column %d\n", static_cast<int>(i), static_cast<int>(j));
              return 1;
            }
            ++checked;
          }
        lutcc_tensor_free(&own);
      }
  std::printf("%d\n", checked);
  lutcc_free(model);
  return 0;
}

// copies PATH COUNT [odd]: tensors of any layout, of a model that gives its input back.
int command_copies(int argc, char** argv) {
  lutcc_model* model = load(argv[2]);
  const lutcc_spec* spec;
  if (lutcc_inputs(model, &spec) != 1) std::abort();
  const size_t size = spec->dtype.bits / 8;
  std::mt19937 random(3);
  // Strides of a tensor whose axes lie in any order and direction, with gaps; and its first byte.
  const auto lay_out = [&](const int64_t* shape, int64_t* strides, std::vector<char>& space) {
    int64_t step = 1 + static_cast<int64_t>(random() % 2), first = 0;
    std::vector<int> axes;
    for (int axis = 0; axis < spec->ndim; ++axis)
      axes.insert(axes.begin() + random() % (axes.size() + 1), axis);
    for (const int axis : axes) {
      const bool back = random() % 2;
      strides[axis] = back ? -step : step;
      if (back && shape[axis] > 0) first += step * (shape[axis] - 1);
      step *= shape[axis] + static_cast<int64_t>(random() % 2);
    }
    space.resize(static_cast<size_t>(step + 1) * size + 1);
    for (char& byte : space) byte = static_cast<char>(random());
    return space.data() + random() % 2 + static_cast<size_t>(first) * size;
  };
  int64_t shape[LUTCC_MAX_NDIM] = {}, from[LUTCC_MAX_NDIM], to[LUTCC_MAX_NDIM];
  int done = 0;
  for (; done < std::atoi(argv[3]); ++done) {
    std::vector<char> source, target;
    const int64_t count = lutcc_shape(spec, static_cast<int64_t>(random() % 5), shape);
    if (argc > 4) shape[0] = 3;
    lutcc_tensor x = lutcc_dense(nullptr, spec->dtype.code, spec->dtype.bits, spec->ndim, shape);
    lutcc_tensor y = x;
    x.data = lay_out(shape, from, source);
    y.data = lay_out(shape, to, target);
    x.strides = from;
    y.strides = to;
    if (lutcc_run(model, &x, 1, &y, 1) != LUTCC_OK) {
      std::printf("%s\n", lutcc_error());
      lutcc_free(model);
      return 1;
    }
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, a = 0, b = 0;
      for (int axis = spec->ndim - 1; axis >= 0; rest /= shape[axis--]) {
        a += rest % shape[axis] * from[axis];
        b += rest % shape[axis] * to[axis];
      }
      const auto bytes = static_cast<int64_t>(size);
      if (std::memcmp(static_cast<char*>(x.data) + a * bytes,
                      static_cast<char*>(y.data) + b * bytes, size) != 0)
        std::abort();
    }
  }
  std::printf("%d\n", done);
  lutcc_free(model);
  return 0;
}

// unaligned PATH X Y: a large output of the caller, at 16 addresses.
int command_unaligned(int, char** argv) {
  lutcc_model* model = load(argv[2]);
  Bytes x = read_file(argv[3]);
  const Bytes want = read_file(argv[4]);
  const lutcc_spec *in, *out;
  int64_t shape[LUTCC_MAX_NDIM], out_shape[LUTCC_MAX_NDIM];
  lutcc_inputs(model, &in);
  lutcc_outputs(model, &out);
  const auto rows = static_cast<int64_t>(x.size()) / (4 * lutcc_shape(in, 1, shape));
  lutcc_shape(in, rows, shape);
  lutcc_shape(out, rows, out_shape);
  const lutcc_tensor given = lutcc_dense(x.data(), LUTCC_FLOAT, 32, 2, shape);
  int same = 0;
  for (size_t skip = 0; skip < 64; skip += 4) {
    Bytes space(want.size() + 64);
    lutcc_tensor y = lutcc_dense(space.data() + skip, LUTCC_FLOAT, 32, 2, out_shape);
    if (lutcc_run(model, &given, 1, &y, 1) != LUTCC_OK) std::abort();
    same += !std::memcmp(space.data() + skip, want.data(), want.size());
  }
  std::printf("%d same\n", same);
  lutcc_free(model);
  return 0;
}

// threads PATH X Y THREADS CALLS: rows of float32, compared with those that Python computed.
int command_threads(int, char** argv) {
  lutcc_options options = LUTCC_OPTIONS;
  options.num_threads = 2;
  lutcc_model* model = load(argv[2], &options);
  const Bytes x = read_file(argv[3]), want = read_file(argv[4]);
  const lutcc_spec *in, *out;
  if (lutcc_inputs(model, &in) != 1 || lutcc_outputs(model, &out) < 1) std::abort();
  int64_t shape[LUTCC_MAX_NDIM];
  const auto wide = static_cast<size_t>(lutcc_shape(in, 1, shape)) * 4;
  const auto rows = static_cast<int64_t>(x.size() / wide);
  std::atomic<int> wrong{0}, calls{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    int64_t own_shape[LUTCC_MAX_NDIM];
    for (int call = 0; call < std::atoi(argv[6]); ++call, ++calls) {
      const int64_t n = static_cast<int64_t>(random() % 40);
      const int64_t first = static_cast<int64_t>(random() % static_cast<unsigned>(rows - n));
      const auto from = static_cast<size_t>(first);
      lutcc_shape(in, n, own_shape);
      Bytes copy(x.begin() + static_cast<int64_t>(from * wide),
                 x.begin() + static_cast<int64_t>((from + static_cast<size_t>(n)) * wide));
      const lutcc_tensor given = lutcc_dense(copy.data(), LUTCC_FLOAT, 32, in->ndim, own_shape);
      std::vector<lutcc_tensor> results(static_cast<size_t>(lutcc_outputs(model, nullptr)));
      if (lutcc_run(model, &given, 1, results.data(), static_cast<int32_t>(results.size()))) {
        std::printf("%s\n", lutcc_error());
        ++wrong;
        return;
      }
      const auto high = static_cast<size_t>(lutcc_shape(out, 1, own_shape)) * 4;
      const lutcc_tensor& y = results[0];
      if (y.shape[0] != n ||
          (n && std::memcmp(y.data, want.data() + from * high, static_cast<size_t>(n) * high) != 0))
        ++wrong;
      for (lutcc_tensor& result : results) lutcc_tensor_free(&result);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < std::atoi(argv[5]); ++i) threads.emplace_back(work, i + 1);
  for (std::thread& thread : threads) thread.join();
  lutcc_free(model);
  std::printf("%d calls, %d wrong\n", calls.load(), wrong.load());
  return wrong != 0;
}

// damage PATH TEMPORARY COUNT: load copies with a byte changed, or the end cut off.
int command_damage(int, char** argv) {
  const Bytes whole = read_file(argv[2]);
  std::mt19937 random(7);
  int refused = 0, loaded = 0;
  for (int i = 0; i < std::atoi(argv[4]); ++i) {
    Bytes bytes = whole;
    // Half of the places are in the last 2 KB, the directory of the zip.
    const size_t from = i % 2 && bytes.size() > 2048 ? bytes.size() - 2048 : 0;
    const size_t at = from + random() % (bytes.size() - from);
    if (i % 5 == 0)
      bytes.resize(at);
    else
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
    std::ofstream(argv[3], std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    lutcc_model* model = nullptr;
    if (lutcc_load(argv[3], nullptr, &model) == LUTCC_OK)
      ++loaded;
    else if (model || !std::strstr(lutcc_error(), "To mend it: "))
      std::abort();
    else
      ++refused;
    lutcc_free(model);
  }
  std::printf("%d %d\n", refused, loaded);
  return 0;
}

// sha256 COUNT: digests of 0 to COUNT - 1 bytes, in pieces of several sizes.
int command_sha256(int, char** argv) {
  std::string data;
  for (int size = 0; size < std::atoi(argv[2]); ++size) {
    lutcc::Sha256 hash;
    const size_t piece = static_cast<size_t>(size % 67 + 1);
    for (size_t at = 0; at < data.size(); at += piece)
      hash.update(data.data() + at, std::min(piece, data.size() - at));
    std::printf("%s\n", hash.hex().c_str());
    data += static_cast<char>(size * 7);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const struct {
    const char* name;
    int arguments;
    int (*run)(int, char**);
  } commands[] = {{"load", 1, command_load},       {"mistakes", 1, command_mistakes},
                  {"layouts", 1, command_layouts}, {"threads", 5, command_threads},
                  {"damage", 3, command_damage},   {"sha256", 1, command_sha256},
                  {"copies", 2, command_copies},   {"unaligned", 3, command_unaligned}};
  for (const auto& command : commands)
    if (argc >= command.arguments + 2 && !std::strcmp(argv[1], command.name))
      return command.run(argc, argv);
  return 2;
}
