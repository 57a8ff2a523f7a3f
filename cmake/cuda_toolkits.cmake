# What the versions of nvcc can do. Functions alone, so that tests/test_cuda_toolkits.py can ask them for any version
# and processor in CMake's script mode.

# The first that compiles C++20.
set(FAI_FAST_OLDEST_NVCC 12.0)

# The version in what `nvcc --version` prints; empty where there is none.
function(fai_fast_nvcc_version printed version)
    set(found "")
    if(printed MATCHES "release ([0-9]+\\.[0-9]+)")
        set(found ${CMAKE_MATCH_1})
    endif()
    set(${version} "${found}" PARENT_SCOPE)
endfunction()

# Why an nvcc of a version is not taken; empty where it is.
function(fai_fast_refuse_nvcc nvcc version reason)
    set(found "")
    if(version STREQUAL "")
        set(found "${nvcc} does not say its version")
    elseif(version VERSION_LESS FAI_FAST_OLDEST_NVCC)
        set(found "${nvcc} is version ${version}, ${FAI_FAST_OLDEST_NVCC} or later is needed")
    endif()
    set(${reason} "${found}" PARENT_SCOPE)
endfunction()

# The architectures to compile for. Machine code for each major version since Turing, which its minor versions run too
# (8.0's: 8.6 and 8.9). Not on Jetson, whose 8.7 (Orin) and 11.0 (Thor, 10.1 before CUDA 13) are promised only code of
# their own. PTX of the oldest, which every driver compiles for what is not listed: for cards to come, and with an nvcc
# that does not know them yet for those there are.
function(fai_fast_cuda_architectures version processor architectures)
    set(found 75-real 80-real)
    set(jetson OFF)
    if(processor MATCHES "^(aarch64|arm64|ARM64)$")
        set(jetson ON)
    endif()
    if(jetson)
        list(APPEND found 87-real)
    endif()
    list(APPEND found 90-real)
    if(version VERSION_GREATER_EQUAL 12.8)
        list(APPEND found 100-real)
        if(jetson AND version VERSION_LESS 13.0)
            list(APPEND found 101-real)
        elseif(jetson)
            list(APPEND found 110-real)
        endif()
        list(APPEND found 120-real)
    endif()
    list(APPEND found 75-virtual)
    set(${architectures} "${found}" PARENT_SCOPE)
endfunction()

# The oldest branch of NVIDIA's driver that a build with nvcc runs on: a toolkit's first, by CUDA's compatibility between
# minor versions.
function(fai_fast_cuda_driver version driver)
    if(version VERSION_LESS 13.0)
        set(${driver} 525 PARENT_SCOPE)
    else()
        set(${driver} 580 PARENT_SCOPE)
    endif()
endfunction()
