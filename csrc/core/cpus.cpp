#include "csrc/core/cpus.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string_view>
#include <system_error>
#include <vector>

namespace fai {
namespace {

// The whole file; empty where it cannot be read. Not by a stream: see core/error.h.
std::string contents(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"), std::fclose);
    std::string text;
    if (!file) return text;
    char part[4096];
    while (const size_t count = std::fread(part, 1, sizeof part, file.get())) text.append(part, count);
    return text;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(separator, begin), text.size());
        if (end > begin) parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

bool contains(std::string_view list, std::string_view item) {
    const auto items = split(list, ',');
    return std::find(items.begin(), items.end(), item) != items.end();
}

// A number at the beginning of the text; 0 for anything else, such as "max".
int64_t number(std::string_view text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() ? value : 0;
}

int whole_cpus(int64_t time, int64_t period) {
    if (time <= 0 || period <= 0) return 0;
    return static_cast<int>(std::min<int64_t>((time - 1) / period + 1, INT32_MAX));
}

int quota_of(const std::string& folder, bool version2) {
    if (version2) {
        const std::string text = contents(folder + "/cpu.max");
        const auto parts = split(text, ' ');
        return parts.size() < 2 ? 0 : whole_cpus(number(parts[0]), number(parts[1]));
    }
    return whole_cpus(number(contents(folder + "/cpu.cfs_quota_us")),
                      number(contents(folder + "/cpu.cfs_period_us")));
}

// A path of /proc/self/mountinfo, where blanks and backslashes stand as \ and three octal digits.
std::string unescaped(std::string_view path) {
    std::string text;
    for (size_t i = 0; i < path.size(); ++i) {
        int code = 0;
        if (path[i] == '\\' && i + 3 < path.size() &&
            std::from_chars(&path[i + 1], &path[i + 1] + 3, code, 8).ptr == &path[i + 1] + 3) {
            text += static_cast<char>(code);
            i += 3;
        } else {
            text += path[i];
        }
    }
    return text;
}

// Where a hierarchy of control groups is mounted, and which group of it stands there.
struct Mount {
    bool version2;
    std::string group;
    std::string folder;
};

// man 5 proc_pid_mountinfo: id, parent, device, root, mount point, options, any number of fields, "-", type,
// source, the file system's own options.
std::vector<Mount> mounts(const std::string& root) {
    std::vector<Mount> found;
    const std::string table = contents(root + "/proc/self/mountinfo");
    for (const std::string_view line : split(table, '\n')) {
        const auto fields = split(line, ' ');
        const auto dash = std::find(fields.begin(), fields.end(), "-");
        if (fields.size() < 6 || fields.end() - dash < 4) continue;
        const bool version2 = dash[1] == "cgroup2";
        if (!version2 && !(dash[1] == "cgroup" && contains(dash[3], "cpu"))) continue;
        found.push_back({version2, unescaped(fields[3]), root + unescaped(fields[4])});
    }
    return found;
}

// What follows `top` in `group`: empty where they are one, and where `group` lies elsewhere, as it does where
// a container sees the names of its host.
std::string below(const std::string& top, const std::string& group) {
    const size_t length = top == "/" ? 0 : top.size();
    if (group.compare(0, length, top, 0, length) != 0) return "";
    const std::string rest = group.substr(length);
    const bool inside =
        !rest.empty() && rest[0] == '/' && rest != "/" && rest.find("/..") == std::string::npos;
    return inside ? rest : "";
}

}  // namespace

#ifdef __linux__
int affinity_cpus(GetAffinity get) {
    // The kernel refuses a set that is smaller than its own, and does not tell how large that is.
    for (int cpus = CPU_SETSIZE; cpus <= (1 << 22); cpus *= 2) {
        const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(cpus),
                                                                   [](cpu_set_t* p) { CPU_FREE(p); });
        const size_t bytes = CPU_ALLOC_SIZE(cpus);
        if (!set) break;
        if (get(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
        if (errno != EINVAL) break;
    }
    return 0;
}
#endif

int quota_cpus(const std::string& root) {
    int least = 0;
    const std::vector<Mount> mounted = mounts(root);
    const std::string groups = contents(root + "/proc/self/cgroup");
    for (const std::string_view line : split(groups, '\n')) {
        // man 7 cgroups: hierarchy, controllers, path. Version 2 has no controllers.
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == line.npos || second == line.npos) continue;
        const std::string_view controllers = line.substr(first + 1, second - first - 1);
        const bool version2 = controllers.empty();
        if (!version2 && !contains(controllers, "cpu")) continue;
        const std::string group(line.substr(second + 1));
        for (const Mount& mount : mounted) {
            if (mount.version2 != version2) continue;
            for (std::string path = below(mount.group, group);; path.resize(path.rfind('/'))) {
                const int quota = quota_of(mount.folder + path, version2);
                if (quota && (!least || quota < least)) least = quota;
                if (path.empty()) break;
            }
        }
    }
    return least;
}

}  // namespace fai
