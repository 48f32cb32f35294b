// Which instruction set the CPU kernels use.
#pragma once

#include <string>
#include <vector>

namespace psp_fast {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The one in use: the environment variable PSP_FAST_CPU (read at first use), else the best that this CPU and this build
// have. Throws std::invalid_argument when PSP_FAST_CPU names one that this CPU or this build lacks.
Capability capability();
std::string capability_name();

// Names that this CPU and this build have, slowest first.
std::vector<std::string> available_capabilities();

// Uses `name` from now on; throws std::invalid_argument as capability() does.
void set_capability(const std::string& name);

}  // namespace psp_fast
