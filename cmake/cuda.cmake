# The target `fai_fast_cuda` implements cuda/api.h: with nvcc from the .cu files, without it from stub.cpp.
# FAI_FAST_CUDA=EMULATED, for tests: from the .cu files, compiled for the CPU against tests/cuda_emulator.
#
# What was done is told by build_info(): FAI_FAST_CUDA_REASON, why nvcc was not used; or FAI_FAST_CUDA_TARGETS, the
# architectures, and FAI_FAST_CUDA_DRIVER, the oldest branch of the driver.
include(CheckLanguage)
include(cmake/cuda_toolkits.cmake)

set(FAI_FAST_CUDA_REASON "")
set(FAI_FAST_CUDA_TARGETS "")
set(FAI_FAST_CUDA_DRIVER "")

option(FAI_FAST_CUDA_FROM_PYPI "Use the nvcc of the package nvidia-cuda-nvcc" OFF)

string(TOUPPER "${FAI_FAST_CUDA}" FAI_FAST_CUDA)
if(NOT FAI_FAST_CUDA MATCHES "^(AUTO|ON|OFF|EMULATED)$")
    message(FATAL_ERROR "FAI_FAST_CUDA is '${FAI_FAST_CUDA}'; choose AUTO, ON, OFF or EMULATED (tests only)")
endif()

file(GLOB FAI_FAST_CUDA_SOURCES CONFIGURE_DEPENDS cuda/*.cu)
list(FILTER FAI_FAST_CUDA_SOURCES EXCLUDE REGEX "/math_headers\\.cu$")
# Those that take nvcc longest begin first, so that no core is left with one of them at the end of a build.
set(FAI_FAST_CUDA_LONGEST cuda/panoptic.cu cuda/semantic_sum.cu cuda/semantic.cu cuda/exclusive.cu)
list(TRANSFORM FAI_FAST_CUDA_LONGEST PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
list(REMOVE_ITEM FAI_FAST_CUDA_SOURCES ${FAI_FAST_CUDA_LONGEST})
list(PREPEND FAI_FAST_CUDA_SOURCES ${FAI_FAST_CUDA_LONGEST})

if(FAI_FAST_CUDA STREQUAL "EMULATED")
    set(FAI_FAST_EMULATOR ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulator)
    if(NOT EXISTS ${FAI_FAST_EMULATOR}/cuda_runtime.h)
        message(FATAL_ERROR "FAI_FAST_CUDA=EMULATED needs the folder tests/cuda_emulator of the repository, and "
            "${FAI_FAST_EMULATOR} is not there; choose AUTO, ON or OFF")
    endif()
    message(STATUS "CUDA: EMULATED on the CPU, for tests only (FAI_FAST_CUDA=EMULATED)")
    set_source_files_properties(${FAI_FAST_CUDA_SOURCES} cuda/math_headers.cu PROPERTIES LANGUAGE CXX)
    add_library(fai_fast_cuda STATIC ${FAI_FAST_CUDA_SOURCES} cuda/math_headers.cu
        ${FAI_FAST_EMULATOR}/execution.cpp ${FAI_FAST_EMULATOR}/runtime.cpp)
    target_include_directories(fai_fast_cuda BEFORE PRIVATE ${FAI_FAST_EMULATOR})
    # nvcc includes cuda_runtime.h by itself, and knows `#pragma unroll`.
    target_compile_options(fai_fast_cuda PRIVATE -O2 -Wno-unknown-pragmas "SHELL:-include cuda_runtime.h")
    target_compile_definitions(fai_fast_cuda PUBLIC FAI_FAST_CUDA_EMULATED=1)
    target_link_libraries(fai_fast_cuda PUBLIC fai_fast_flags PRIVATE ${CMAKE_DL_LIBS})
    return()
endif()

# Why an nvcc that CMake could not use does not work: the first line of what it says to an empty program.
function(fai_fast_ask_nvcc nvcc reason)
    set(probe ${CMAKE_BINARY_DIR}/CMakeFiles/fai_fast_nvcc.cu)
    file(WRITE ${probe} "int main() { return 0; }\n")
    execute_process(COMMAND ${nvcc} -std=c++20 -c ${probe} -o ${probe}.o
        RESULT_VARIABLE code OUTPUT_VARIABLE said ERROR_VARIABLE said)
    set(found "${nvcc} does not work")
    if(NOT code EQUAL 0 AND said MATCHES "[^\r\n]+")
        string(SUBSTRING "${CMAKE_MATCH_0}" 0 300 line)
        string(APPEND found ": ${line}")
    endif()
    set(${reason} "${found}" PARENT_SCOPE)
endfunction()

# Sets CMAKE_CUDA_COMPILER where an nvcc works; leaves the reason in FAI_FAST_CUDA_REASON where none does.
macro(fai_fast_find_nvcc)
    set(FAI_FAST_CUDA_REASON "there is no nvcc on PATH, in CUDACXX, in CMAKE_CUDA_COMPILER or in /usr/local/cuda")
    set(FAI_FAST_NVCC "")
    if(FAI_FAST_CUDA_FROM_PYPI)
        # Under pip's build isolation only the build's own Python knows where its packages are. Those of CUDA 12 hold
        # the compiler's parts without nvcc itself.
        execute_process(
            COMMAND ${Python_EXECUTABLE} -c "from importlib.metadata import distribution as d; \
print(d('nvidia-cuda-nvcc').locate_file('nvidia/cu13/bin/nvcc').resolve(strict=True))"
            OUTPUT_VARIABLE FAI_FAST_NVCC OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
        if(NOT FAI_FAST_NVCC)
            message(FATAL_ERROR "FAI_FAST_CUDA_FROM_PYPI is on, but ${Python_EXECUTABLE} has no package "
                "nvidia-cuda-nvcc 13; install the requirements that pyproject.toml lists for it (Linux only)")
        endif()
        set(CMAKE_CUDA_COMPILER ${FAI_FAST_NVCC} CACHE FILEPATH "CUDA compiler" FORCE)
    elseif(CMAKE_CUDA_COMPILER)
        set(FAI_FAST_NVCC ${CMAKE_CUDA_COMPILER})
    else()
        # An earlier failure stays in the cache and would hide an nvcc installed since.
        unset(CMAKE_CUDA_COMPILER CACHE)
        # CUDACXX may hold options too. JetPack and NVIDIA's packages leave PATH as it was.
        separate_arguments(fai_fast_cudacxx UNIX_COMMAND "$ENV{CUDACXX}")
        list(APPEND fai_fast_cudacxx nvcc)
        list(GET fai_fast_cudacxx 0 fai_fast_name)
        unset(FAI_FAST_NVCC)
        find_program(FAI_FAST_NVCC ${fai_fast_name} NO_CACHE PATHS /usr/local/cuda/bin)
        if(FAI_FAST_NVCC AND NOT DEFINED ENV{CUDACXX})
            set(ENV{CUDACXX} ${FAI_FAST_NVCC})
        endif()
    endif()
    if(FAI_FAST_NVCC)
        execute_process(COMMAND ${FAI_FAST_NVCC} --version OUTPUT_VARIABLE FAI_FAST_NVCC_VERSION ERROR_QUIET)
        fai_fast_nvcc_version("${FAI_FAST_NVCC_VERSION}" FAI_FAST_NVCC_VERSION)
        fai_fast_refuse_nvcc("${FAI_FAST_NVCC}" "${FAI_FAST_NVCC_VERSION}" FAI_FAST_CUDA_REASON)
        if(FAI_FAST_CUDA_REASON)
            set(CMAKE_CUDA_COMPILER "")
        elseif(NOT CMAKE_CUDA_COMPILER)
            check_language(CUDA)
            if(NOT CMAKE_CUDA_COMPILER)
                fai_fast_ask_nvcc("${FAI_FAST_NVCC}" FAI_FAST_CUDA_REASON)
            endif()
        endif()
    endif()
endmacro()

set(FAI_FAST_CUDA_COMPILED OFF)
if(NOT FAI_FAST_CUDA STREQUAL "OFF")
    fai_fast_find_nvcc()
    if(CMAKE_CUDA_COMPILER)
        set(FAI_FAST_CUDA_COMPILED ON)
    elseif(FAI_FAST_CUDA STREQUAL "ON")
        message(FATAL_ERROR "FAI_FAST_CUDA=ON, but ${FAI_FAST_CUDA_REASON}. Set CUDACXX to an nvcc, or set the "
            "environment variable FAI_FAST_CUDA_FROM_PYPI=1 to build with the one from PyPI")
    endif()
endif()

if(NOT FAI_FAST_CUDA_COMPILED)
    if(FAI_FAST_CUDA STREQUAL "OFF")
        set(FAI_FAST_CUDA_REASON "FAI_FAST_CUDA was OFF")
        message(STATUS "CUDA: not built, FAI_FAST_CUDA=OFF")
    else()
        message(STATUS "CUDA: not built, ${FAI_FAST_CUDA_REASON} (FAI_FAST_CUDA=AUTO)")
    endif()
    # A quote or a backslash of a compiler's message would have to pass several shells.
    string(REGEX REPLACE "[\"\\;$]" "'" FAI_FAST_CUDA_REASON "${FAI_FAST_CUDA_REASON}")
    add_library(fai_fast_cuda STATIC cuda/stub.cpp)
    target_compile_definitions(fai_fast_cuda PRIVATE FAI_FAST_CUDA_REASON="${FAI_FAST_CUDA_REASON}")
    target_link_libraries(fai_fast_cuda PUBLIC fai_fast_flags)
    return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    fai_fast_cuda_architectures("${FAI_FAST_NVCC_VERSION}" "${CMAKE_SYSTEM_PROCESSOR}" CMAKE_CUDA_ARCHITECTURES)
endif()
list(JOIN CMAKE_CUDA_ARCHITECTURES " " FAI_FAST_CUDA_TARGETS)
fai_fast_cuda_driver("${FAI_FAST_NVCC_VERSION}" FAI_FAST_CUDA_DRIVER)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# Static, so that the library starts on machines without CUDA; nothing links the driver's libcuda.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
# CMake 3.25 knows CUDA_STANDARD 20 but not nvcc's flag for it; its own compiler test must come before the standard.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
message(STATUS "CUDA: built with ${CMAKE_CUDA_COMPILER} ${FAI_FAST_NVCC_VERSION} for ${FAI_FAST_CUDA_TARGETS}, to run on "
    "NVIDIA driver ${FAI_FAST_CUDA_DRIVER} or later (FAI_FAST_CUDA=${FAI_FAST_CUDA})")

add_library(fai_fast_cuda_flags INTERFACE)
# No fused multiply-add, as on the CPU: ties must fall the same way on both.
target_compile_options(fai_fast_cuda_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-Xcompiler=-Wall,-Wextra,-ffp-contract=off>")
target_link_libraries(fai_fast_cuda_flags INTERFACE fai_fast_flags)

add_library(fai_fast_cuda STATIC ${FAI_FAST_CUDA_SOURCES})
target_link_libraries(fai_fast_cuda PUBLIC fai_fast_cuda_flags)
if(FAI_FAST_NVTX)
    target_compile_definitions(fai_fast_cuda PRIVATE FAI_FAST_NVTX=1)
    # nvtx3 opens the profiler's library where one is attached.
    target_link_libraries(fai_fast_cuda PRIVATE ${CMAKE_DL_LIBS})
endif()

# A proof that the headers compile, not code to ship: one architecture is enough, and it is linked nowhere.
add_library(fai_fast_cuda_math_headers OBJECT cuda/math_headers.cu)
set_target_properties(fai_fast_cuda_math_headers PROPERTIES CUDA_ARCHITECTURES 75-virtual)
target_link_libraries(fai_fast_cuda_math_headers PRIVATE fai_fast_cuda_flags)
