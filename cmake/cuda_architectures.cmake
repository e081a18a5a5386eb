# default_cuda_architectures(OUT nvcc version): what to compile for where CUDAARCHS does not say.
#
# The GPUs of this machine, as nvidia-smi tells them (CUDA_VISIBLE_DEVICES hides none of them), of those that the kernels
# run on (8.0 and newer) and nvcc knows. Where there are none: 80, 90 and, from nvcc 12.8 on, 100. Code for 80 runs on 86
# and 89 as well, and the driver of a newer GPU compiles the PTX that goes with it.
function(default_cuda_architectures out nvcc version)
  set(found)
  find_program(nvidia_smi nvidia-smi NO_CACHE)
  if(nvidia_smi)
    execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader TIMEOUT 20
                    OUTPUT_VARIABLE capabilities RESULT_VARIABLE failed ERROR_QUIET)
    execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
    if(failed EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
      foreach(capability IN LISTS capabilities)
        string(REPLACE "." "" architecture ${capability})
        if(architecture GREATER_EQUAL 80 AND known MATCHES "compute_${architecture}[^0-9]")
          list(APPEND found ${architecture})
        endif()
      endforeach()
    endif()
  endif()
  if(found)
    list(REMOVE_DUPLICATES found)
    list(SORT found COMPARE NATURAL)
  elseif(version VERSION_GREATER_EQUAL 12.8)
    set(found 80 90 100)
  else()
    set(found 80 90)
  endif()
  set(${out} ${found} PARENT_SCOPE)
endfunction()
