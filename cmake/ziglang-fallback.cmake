# Sets CMAKE_CXX_COMPILER to the machine's C++ compiler or, where there is none that will do, to the one in the Python
# package ziglang. Included before project(), which would stop at CXX=g++ on a machine without g++:
# scikit-build-core sets that variable to the compiler that Python itself was built with.

if(DEFINED CMAKE_CXX_COMPILER OR DEFINED CMAKE_TOOLCHAIN_FILE)
  return()
endif()

if(DEFINED Python_EXECUTABLE)
  set(QEXPORT_PYTHON "${Python_EXECUTABLE}")
else()
  find_program(QEXPORT_PYTHON NAMES python3 python REQUIRED)
endif()

execute_process(
  COMMAND "${QEXPORT_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/host_compiler.py"
  OUTPUT_VARIABLE QEXPORT_CXX OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(QEXPORT_CXX)
  set(CMAKE_CXX_COMPILER ${QEXPORT_CXX})
  return()
endif()

execute_process(
  COMMAND "${QEXPORT_PYTHON}" -c
    "import pathlib, ziglang; print((pathlib.Path(ziglang.__file__).parent / 'zig').as_posix())"
  OUTPUT_VARIABLE QEXPORT_ZIG OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET RESULT_VARIABLE QEXPORT_NO_ZIG)
if(QEXPORT_NO_ZIG)
  message(FATAL_ERROR
    "qexport: no C++ compiler that will do (GCC 11, clang 12 or newer) and no Python package ziglang. Install "
    "g++ or ziglang, or set QEXPORT_NO_KERNELS=1 to install without the kernel library: everything then runs "
    "on stock ONNX Runtime.")
endif()
message(STATUS "qexport: no C++ compiler that will do, taking ${QEXPORT_ZIG} c++")
set(CMAKE_CXX_COMPILER "${QEXPORT_ZIG}" c++)
# zig compiles for the build machine's own processor unless told otherwise; a wheel must not. It would first build C
# and C++ libraries, minutes of work, to link the programs that CMake tries a compiler with; they are never run.
set(CMAKE_CXX_FLAGS_INIT "-mcpu=baseline -nostdlib -fno-sanitize=undefined")
