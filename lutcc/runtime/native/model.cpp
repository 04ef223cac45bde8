#include "model.hpp"

#include "cpu.hpp"
#include "failure.hpp"
#include "sha256.hpp"

namespace lutcc {
namespace {

std::string joined(const std::vector<std::string>& words, const char* between = ", ") {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : between) + word;
  return out;
}

[[noreturn]] void changed(const std::string& name, const std::string& path) {
  fail(LUTCC_ARTIFACT,
       "the sha256 of " + quoted(name) + " is not the one in the manifest: the file was changed",
       path, kAgain);
}

// Compare the list of files with what is there.
void compare_files(const Manifest& manifest, const Container& container) {
  const std::string& path = container.path();
  const auto& there = container.sizes();
  for (const auto& file : there)
    if (file.first != kManifest && !manifest.files.count(file.first))
      fail(LUTCC_ARTIFACT, "holds a file that its manifest does not list: " + quoted(file.first),
           path, "remove it, or make the artifact again");
  for (const auto& [name, entry] : manifest.files) {
    const auto found = there.find(name);
    if (found == there.end())
      fail(LUTCC_ARTIFACT, "the file " + quoted(name) + " is missing", path, kAgain);
    if (found->second != entry.size)
      fail(LUTCC_ARTIFACT,
           quoted(name) + " has " + std::to_string(found->second) + " bytes, the manifest says " +
               std::to_string(entry.size),
           path, kAgain);
  }
}

Manifest checked_manifest(const Container& container) {
  const std::string& path = container.path();
  const auto own = container.sizes().find(kManifest);
  if (own == container.sizes().end())
    fail(LUTCC_ARTIFACT, "holds no manifest.json: it is no artifact", path, kAgain);
  const std::string where = path + "/" + kManifest;
  if (own->second > kLongestManifest)
    fail(LUTCC_ARTIFACT, "is " + std::to_string(own->second) + " bytes long, which no manifest is",
         where, kAgain);
  const Buffer bytes = container.load(kManifest);
  Manifest manifest = read_manifest(
      std::string(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(bytes.size())),
      where);
  compare_files(manifest, container);
  return manifest;
}

// The best variant that the processor runs, or the one that is asked for.
const Variant& choose(const Manifest& manifest, const lutcc_options& options,
                      const std::string& path) {
  const Cpu cpu = this_cpu(options.max_isa);
  std::vector<std::string> known, lacks;
  const Variant* best = nullptr;
  for (const Variant& variant : manifest.variants) {  // worst level first
    known.push_back(variant.isa);
    if (options.isa && variant.isa != options.isa) continue;
    const std::vector<std::string> missing = cpu.missing(variant.features);
    if (missing.empty())
      best = &variant;
    else
      lacks.push_back(variant.isa + " needs " + joined(missing));
  }
  if (best) return *best;
  if (lacks.empty())
    fail(LUTCC_INVALID, "the artifact has no variant " + quoted(options.isa), path,
         "use one of " + joined(known));
  const std::string level = cpu.best(), capped = cpu.cap.empty() ? "" : ", capped at " + cpu.cap;
  fail(LUTCC_CPU,
       "no kernels in it run on this processor (" + cpu.model + ", best level " +
           (level.empty() ? "none" : level) + capped + "): " + joined(lacks, "; "),
       path,
       "compile the model with target='" + (level.empty() ? "host" : level) + "'" +
           (capped.empty() ? "" : ", or leave LUTCC_MAX_ISA and max_isa out"));
}

}  // namespace

Buffer load_checked(const Container& container, const Manifest& manifest,
                    const std::string& name) {
  Buffer bytes = container.load(name);
  Sha256 hash;
  hash.update(bytes.data(), static_cast<size_t>(bytes.size()));
  if (hash.hex() != manifest.files.at(name).sha256) changed(name, container.path());
  return bytes;
}

}  // namespace lutcc

lutcc_model::lutcc_model(const lutcc::Container& container, const lutcc_options& options)
    : manifest(lutcc::checked_manifest(container)),
      inputs(manifest.inputs),
      outputs(manifest.outputs) {
  const lutcc::Variant& variant = lutcc::choose(manifest, options, container.path());
  isa = variant.isa;
  // Files that are loaded whole are checked then; the others are read here once.
  for (const auto& [name, entry] : manifest.files)
    if (name != variant.file && name != variant.packed && container.hash(name) != entry.sha256)
      lutcc::changed(name, container.path());
  const lutcc::Buffer library = lutcc::load_checked(container, manifest, variant.file);
  const lutcc::Opening opening{container, manifest, variant, library, options};
  kernel = manifest.kind == "ir" ? lutcc::open_lookup(opening) : lutcc::open_relax(opening);
}
