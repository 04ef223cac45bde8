#include "container.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "failure.hpp"
#include "sha256.hpp"

namespace lutcc {
namespace {

constexpr int64_t kPiece = 1 << 20;

}  // namespace

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Container::Container(const std::string& path)
    : path_(path), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  struct stat status;
  if (file_.get() < 0 || ::fstat(file_.get(), &status) != 0)
    fail(LUTCC_ARTIFACT, "cannot be read: " + system_error(errno), path,
         errno == EACCES ? "grant read permission"
                         : "check the path; artifact.save(path, packed=True) writes one");
  if (S_ISDIR(status.st_mode)) {
    list_folder();
  } else if (S_ISREG(status.st_mode)) {
    zip_ = true;
    list_zip();
  } else {
    fail(LUTCC_ARTIFACT, "is neither a folder nor a regular file", path, kAgain);
  }
}

void Container::damaged(const std::string& what) const {
  fail(LUTCC_ARTIFACT, what, path_, kAgain);
}

void Container::list_folder() {
  const int own = ::dup(file_.get());  // closedir closes it
  std::unique_ptr<DIR, int (*)(DIR*)> folder(own < 0 ? nullptr : ::fdopendir(own), &::closedir);
  if (!folder) fail(LUTCC_ARTIFACT, "cannot be listed: " + system_error(errno), path_, kAgain);
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat status;
    if (::fstatat(file_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(status.st_mode))
      fail(LUTCC_ARTIFACT, "holds " + quoted(name) + ", which is no regular file", path_,
           "an artifact holds only plain files, no links and no folders; remove it");
    sizes_[name] = status.st_size;
  }
}

Container::Place Container::place(const std::string& name) const {
  if (zip_) {
    // The local header repeats the name, and then comes a field of any length.
    unsigned char head[30];
    const int64_t at = offsets_.at(name);
    read(file_.get(), head, sizeof head, at, name);
    const int64_t name_size = head[26] | head[27] << 8, extra = head[28] | head[29] << 8;
    std::string own(static_cast<size_t>(name_size), '\0');
    read(file_.get(), own.data(), name_size, at + 30, name);
    if (std::string(head, head + 4) != "PK\3\4" || own != name)
      damaged("the entry " + quoted(name) + " is damaged");
    return {File(), file_.get(), at + 30 + name_size + extra};
  }
  // O_NOFOLLOW: the file may have become a link since it was listed.
  File own(::openat(file_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status;
  if (own.get() < 0 || ::fstat(own.get(), &status) != 0)
    damaged(quoted(name) + " cannot be read: " + system_error(errno));
  if (status.st_size != sizes_.at(name)) damaged(quoted(name) + " changed while it was read");
  const int descriptor = own.get();
  return {std::move(own), descriptor, 0};
}

void Container::read(int descriptor, void* into, int64_t size, int64_t offset,
                     const std::string& what) const {
  auto* bytes = static_cast<unsigned char*>(into);
  while (size > 0) {
    const ssize_t got = ::pread(descriptor, bytes, static_cast<size_t>(size), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      damaged(quoted(what) + " cannot be read: " + (got ? system_error(errno) : "it ends early"));
    bytes += got;
    offset += got;
    size -= got;
  }
}

Buffer Container::load(const std::string& name) const {
  const Place found = place(name);
  Buffer out(sizes_.at(name));
  read(found.descriptor, out.data(), out.size(), found.offset, name);
  return out;
}

std::string Container::hash(const std::string& name) const {
  const Place found = place(name);
  const int64_t size = sizes_.at(name);
  Buffer piece(std::min(size, kPiece));
  Sha256 hash;
  for (int64_t at = 0; at < size; at += kPiece) {
    const int64_t count = std::min(kPiece, size - at);
    read(found.descriptor, piece.data(), count, found.offset + at, name);
    hash.update(piece.data(), static_cast<size_t>(count));
  }
  return hash.hex();
}

}  // namespace lutcc
