// Kernels by their names, to be called with their arguments' addresses as the driver is.
#pragma once

#include <map>
#include <string>
#include <type_traits>
#include <utility>

typedef void (*Kernel)(void **arguments);

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <auto KERNEL>
struct Call;

template <typename... A, void (*KERNEL)(A...)>
struct Call<KERNEL> {
    template <size_t... I>
    static void spread(void **arguments, std::index_sequence<I...>) {
        KERNEL(*(std::remove_const_t<A> *)arguments[I]...);
    }
    static void run(void **arguments) { spread(arguments, std::index_sequence_for<A...>()); }
};

struct Keep {
    Keep(const char *name, Kernel kernel) { kernels()[name] = kernel; }
};

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define JOINED_OF(a, b) a##b
#define JOINED(a, b) JOINED_OF(a, b)
#define KEEP(KERNEL) static const Keep JOINED(keep_, KERNEL)(TEXT(KERNEL), Call<KERNEL>::run);
