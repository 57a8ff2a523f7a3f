// What of csrc/core cannot be reached from Python, or depends on the machine there: texts in a hostile
// locale, machines with more CPUs than a cpu_set_t holds, memory that is lent again.
#include <cerrno>
#include <clocale>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <locale>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "csrc/core/cpus.h"
#include "csrc/core/error.h"
#include "csrc/core/recycler.h"

namespace {

int failures = 0;

void expect(bool holds, int line, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "line %d: %s\n", line, what.c_str());
    ++failures;
}
#define EXPECT(condition) expect((condition), __LINE__, #condition)
#define EXPECT_TEXT(found, expected) \
    expect((found) == std::string(expected), __LINE__, "got '" + (found) + "', expected '" expected "'")

struct Hostile : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
    std::string do_truename() const override { return "wahr"; }
};

void texts() {
    // That the locale is as hostile as it should be.
    std::ostringstream stream;
    stream << 1234567 << ' ' << 0.5;
    EXPECT(stream.str() == "1.234.567 0,5");

    using fai::message;
    EXPECT_TEXT(message("size: got ", 1234567, " x ", int64_t{-9876543210}),
                "size: got 1234567 x -9876543210");
    EXPECT_TEXT(message(size_t{18446744073709551615u}), "18446744073709551615");
    EXPECT_TEXT(message(0.5, ' ', 0.5f, ' ', -1234567.5, ' ', 1e-9, ' ', 100000.0),
                "0.5 0.5 -1.23457e+06 1e-09 100000");
    EXPECT_TEXT(message(0.1f, ' ', 1.0, ' ', 1.0 / 3), "0.1 1 0.333333");
    EXPECT_TEXT(message(std::numeric_limits<double>::infinity(), ' ', std::nan("")), "inf nan");
    EXPECT_TEXT(message(-std::numeric_limits<double>::max(), ' ', std::numeric_limits<float>::denorm_min()),
                "-1.79769e+308 1.4013e-45");
    EXPECT_TEXT(message(true, false, std::string("s"), 'c', "literal"), "10scliteral");
    EXPECT_TEXT(message(), "");
}

// A machine of kCpus CPUs, of which the process may use every third; as Linux answers.
constexpr int kCpus = 5000;
int asked = 0;
int many_cpus(pid_t, size_t bytes, cpu_set_t* set) {
    ++asked;
    if (bytes * 8 < kCpus) {
        errno = EINVAL;
        return -1;
    }
    std::memset(set, 0, bytes);
    for (int cpu = 0; cpu < kCpus; cpu += 3) CPU_SET_S(cpu, bytes, set);
    return 0;
}

int forbidden(pid_t, size_t, cpu_set_t*) {
    errno = EPERM;
    return -1;
}

int never_enough(pid_t, size_t, cpu_set_t*) {
    errno = EINVAL;
    return -1;
}

void cpus() {
    EXPECT(fai::affinity_cpus(many_cpus) == (kCpus + 2) / 3);
    EXPECT(asked > 1);
    EXPECT(fai::affinity_cpus(forbidden) == 0);
    EXPECT(fai::affinity_cpus(never_enough) == 0);
    EXPECT(fai::affinity_cpus() >= 1);
}

void memory() {
    constexpr size_t kBytes = 100'000, kLarge = size_t{65} << 20;
    static fai::Recycler recycler, other;
    void* first = recycler.take(kBytes);
    EXPECT(reinterpret_cast<uintptr_t>(first) % 64 == 0);
    void* second = recycler.take(kBytes);
    EXPECT(second != first);
    std::memset(first, 1, kBytes);
    std::memset(second, 2, kBytes);
    EXPECT(static_cast<char*>(first)[kBytes - 1] == 1);
    // The last that came back is lent again, once.
    fai::Recycler::give_back(first);
    fai::Recycler::give_back(second);
    EXPECT(recycler.take(kBytes) == second);
    void* third = recycler.take(kBytes);
    EXPECT(third != second);
    // To its own recycler alone.
    fai::Recycler::give_back(third);
    void* foreign = other.take(kBytes);
    EXPECT(foreign != third);
    EXPECT(recycler.take(kBytes) == third);
    fai::Recycler::give_back(foreign);
    fai::Recycler::give_back(third);
    fai::Recycler::give_back(second);
    // Another size, a huge one, and one that nothing can hold.
    void* smaller = recycler.take(kBytes - 1);
    std::memset(smaller, 3, kBytes - 1);
    void* large = recycler.take(kLarge);
    static_cast<char*>(large)[kLarge - 1] = 1;
    fai::Recycler::give_back(large);
    fai::Recycler::give_back(smaller);
    EXPECT(recycler.take(kBytes - 1) == smaller);
    fai::Recycler::give_back(smaller);
    for (const size_t bytes : {SIZE_MAX, SIZE_MAX / 2}) {
        bool thrown = false;
        try {
            recycler.take(bytes);
        } catch (const std::bad_alloc&) {
            thrown = true;
        }
        EXPECT(thrown);
    }
    // Threads never hold the same block.
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([i] {
            for (int round = 0; round < 2000; ++round) {
                auto* bytes = static_cast<char*>(recycler.take(round % 7 ? 4096 : 8192));
                std::memset(bytes, i, 4096);
                for (int at = 0; at < 4096; at += 512) {
                    if (bytes[at] != i) std::abort();
                }
                fai::Recycler::give_back(bytes);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

// With the name of a locale of the system's that is to be as hostile, where there is one.
int main(int count, char** arguments) {
    if (count > 1) {
        if (!std::setlocale(LC_ALL, arguments[1])) {
            std::fprintf(stderr, "there is no locale %s\n", arguments[1]);
            return 2;
        }
        char text[16];
        std::snprintf(text, sizeof text, "%.1f", 0.5);
        EXPECT(std::string(text) == "0,5");
    }
    std::locale::global(std::locale(std::locale(), new Hostile));
    texts();
    cpus();
    memory();
    return failures ? 1 : 0;
}
