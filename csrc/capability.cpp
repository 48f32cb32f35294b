#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace psp_fast {
namespace {

struct Entry {
  Capability value;
  const char* name;
  bool available;
};

std::vector<Entry> entries() {
  std::vector<Entry> all{{Capability::kBaseline, "baseline", true}};
#ifdef PSP_FAST_HAS_AVX2
  all.push_back({Capability::kAvx2, "avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#ifdef PSP_FAST_HAS_AVX512
  all.push_back({Capability::kAvx512, "avx512",
                 __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma")});
#endif
  return all;
}

Capability named(const std::string& name) {
  std::string names;
  for (const Entry& entry : entries()) {
    if (!entry.available) continue;
    if (name == entry.name) return entry.value;
    names += names.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw std::invalid_argument("PSP_FAST_CPU: this CPU and build have " + names + ", not '" + name + "'");
}

Capability initial() {
  if (const char* name = std::getenv("PSP_FAST_CPU")) {
    if (*name) return named(name);
  }
  Capability best = Capability::kBaseline;
  for (const Entry& entry : entries()) {
    if (entry.available) best = entry.value;
  }
  return best;
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> value{initial()};
  return value;
}

}  // namespace

Capability capability() { return current(); }

std::string capability_name() {
  for (const Entry& entry : entries()) {
    if (entry.value == capability()) return entry.name;
  }
  throw std::logic_error("capability without a name");
}

std::vector<std::string> available_capabilities() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (entry.available) names.push_back(entry.name);
  }
  return names;
}

void set_capability(const std::string& name) { current() = named(name); }

}  // namespace psp_fast
