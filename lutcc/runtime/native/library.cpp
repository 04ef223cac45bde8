#include "library.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "failure.hpp"
#include "tvm_abi.hpp"

namespace {

using lutcc::TvmObject;

thread_local int kernels_running = 0;
thread_local char kernel_kind[64], kernel_message[1024];

}  // namespace

// Kernels call this to report an error: it is the one symbol that they need. TVM's own library has
// a function of this name, too; in a process that has loaded it, either may be the one that the
// linker finds, so what does not come from our kernels is passed on.
extern "C" LUTCC_API void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts,
                                                            int32_t num_parts) {
  if (!kernels_running) {
    using Function = void (*)(const char*, const char**, int32_t);
    if (void* next = dlsym(RTLD_NEXT, "TVMFFIErrorSetRaisedFromCStrParts"))
      return reinterpret_cast<Function>(next)(kind, parts, num_parts);
    if (void* tvm = dlopen("libtvm_ffi.so", RTLD_NOLOAD | RTLD_LAZY)) {
      if (void* own = dlsym(tvm, "TVMFFIErrorSetRaisedFromCStrParts"))
        reinterpret_cast<Function>(own)(kind, parts, num_parts);
      dlclose(tvm);
    }
    return;
  }
  std::snprintf(kernel_kind, sizeof kernel_kind, "%s", kind ? kind : "");
  size_t used = 0;
  kernel_message[0] = '\0';
  for (int32_t i = 0; i < num_parts && used < sizeof kernel_message; ++i)
    if (parts[i])
      used += static_cast<size_t>(
          std::snprintf(kernel_message + used, sizeof kernel_message - used, "%s", parts[i]));
}

namespace lutcc {
namespace {

// The linker looks a kernel's symbols up in what is global. This library may have been opened
// locally, as plugins and interpreters do.
void show_own_symbols(const std::string& name) {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&TVMFFIErrorSetRaisedFromCStrParts), &info) && info.dli_fname)
    if (void* own = dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_LAZY | RTLD_GLOBAL)) dlclose(own);
  if (!dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStrParts"))
    fail(LUTCC_DEPENDENCY,
         "kernels would not find TVMFFIErrorSetRaisedFromCStrParts, through which they report "
         "errors",
         name,
         "link the program with -Wl,--export-dynamic when lutcc is a static library in it");
}

std::string temporary_folder(const char* wanted, const std::string& name) {
  const char* variable = std::getenv("TMPDIR");
  std::string folder = wanted ? wanted : variable && *variable ? variable : "/tmp";
  folder += "/lutcc-XXXXXX";
  if (!mkdtemp(folder.data()))
    fail(LUTCC_ARTIFACT, "no temporary folder can be made: " + system_error(errno), name,
         "let TMPDIR, or the option temp_folder, name a folder that may be written");
  return folder;
}

bool write_all(int file, const Buffer& bytes) {
  for (int64_t at = 0; at < bytes.size();) {
    const ssize_t put = ::write(file, bytes.data() + at, static_cast<size_t>(bytes.size() - at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    at += put;
  }
  return true;
}

}  // namespace

PrivateFile::PrivateFile(const Buffer& bytes, const std::string& name, const char* temp_folder)
    : folder_(temporary_folder(temp_folder, name)), path_(folder_ + "/" + name) {
  const int file = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
  const bool written = file >= 0 && write_all(file, bytes);
  const int problem = errno;
  if (file >= 0) ::close(file);
  if (written) return;
  ::unlink(path_.c_str());
  ::rmdir(folder_.c_str());
  fail(LUTCC_ARTIFACT, "cannot be written to the temporary folder: " + system_error(problem), name,
       "free some space there, or set TMPDIR or the option temp_folder");
}

PrivateFile::~PrivateFile() {
  ::unlink(path_.c_str());
  ::rmdir(folder_.c_str());
}

Library& Library::operator=(Library&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Library::~Library() {
  if (handle_) dlclose(handle_);
}

void* Library::symbol(const char* name) const { return dlsym(handle_, name); }

Library open_kernels(const Buffer& bytes, const std::string& name, const char* temp_folder) {
  show_own_symbols(name);
  const PrivateFile file(bytes, name, temp_folder);
  void* handle = dlopen(file.path().c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle) return Library(handle);
  const char* text = dlerror();
  const std::string problem = text ? text : "unknown reason";
  const bool forbidden = problem.find("failed to map segment") != std::string::npos ||
                         problem.find("not permitted") != std::string::npos;
  fail(LUTCC_ARTIFACT, "the dynamic linker refuses it: " + problem, name,
       forbidden ? "the temporary folder forbids execution; set TMPDIR or the option temp_folder"
                 : "build the artifact again on this system");
}

KernelErrors::KernelErrors() {
  ++kernels_running;
  kernel_kind[0] = kernel_message[0] = '\0';
}

KernelErrors::~KernelErrors() { --kernels_running; }

void KernelErrors::take(std::string& kind, std::string& message) const {
  kind = kernel_kind;
  message = kernel_message;
  if (!kind.empty()) return;
  // The kernel's symbol was that of TVM's library, which keeps errors as objects.
  const auto take_error = reinterpret_cast<void (*)(TvmObject**)>(
      dlsym(RTLD_DEFAULT, "TVMFFIErrorMoveFromRaised"));
  const auto release =
      reinterpret_cast<int (*)(TvmObject*)>(dlsym(RTLD_DEFAULT, "TVMFFIObjectDecRef"));
  TvmObject* error = nullptr;
  if (take_error && release) take_error(&error);
  if (!error) return;
  tvm_error_text(error, kind, message);
  release(error);
}

}  // namespace lutcc
