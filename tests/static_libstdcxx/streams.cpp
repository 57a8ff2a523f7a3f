// Stands for any other library of the process that writes numbers with iostreams.
#include <cstdio>
#include <sstream>

extern "C" int write_numbers(char* text, size_t room) {
    std::ostringstream stream;
    stream << 1234567 << ' ' << 0.5 << ' ' << -8L << ' ' << true;
    return std::snprintf(text, room, "%s", stream.str().c_str());
}
