extern "C" __global__ void one(float * x) { *x = *x + 1; }
