extern "C" __global__ void two(float * x) { *x = *x + 1; }
