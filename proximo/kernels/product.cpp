// C = A B for small float32 matrices on processors with 512-bit vectors.
//
// The sizes of a control policy's layers (tens to hundreds) spend as long in a BLAS library's bookkeeping, or in its
// kernels for an older instruction set, as in arithmetic. Here rows of C are kept in registers, six rows of up to 64
// columns at a time, and one pass over the inner dimension fills them.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <vector>

namespace {

constexpr int WIDTH = 16;  // floats in a vector
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4)));

struct Matrix {  // float32 [rows, columns] with any strides
  const float* data;
  int64_t rows, columns, down, right;
  Matrix transposed() const { return {data, columns, rows, right, down}; }
};

// ROWS x (VECTORS * 16) numbers of C, from a strip of A and a strip of B whose columns are contiguous.
template <int ROWS, int VECTORS>
void tile(const Matrix& a, const float* b, int64_t b_down, float* c, int64_t c_down, int64_t c_right) {
  Vector sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < a.columns; ++k) {
    const Vector* row = reinterpret_cast<const Vector*>(b + k * b_down);
    for (int i = 0; i < ROWS; ++i) {
      const float factor = a.data[i * a.down + k * a.right];
      for (int j = 0; j < VECTORS; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < VECTORS; ++j) {
      if (c_right == 1) {
        *reinterpret_cast<Vector*>(c + i * c_down + j * WIDTH) = sum[i][j];
      } else {
        for (int lane = 0; lane < WIDTH; ++lane) c[i * c_down + (j * WIDTH + lane) * c_right] = sum[i][j][lane];
      }
    }
}

template <int VECTORS>
void strip(Matrix a, const float* b, int64_t b_down, float* c, int64_t c_down, int64_t c_right) {
  for (; a.rows >= 6; a.rows -= 6, a.data += 6 * a.down, c += 6 * c_down)
    tile<6, VECTORS>(a, b, b_down, c, c_down, c_right);
  if (a.rows >= 4) {
    tile<4, VECTORS>(a, b, b_down, c, c_down, c_right);
    a.rows -= 4, a.data += 4 * a.down, c += 4 * c_down;
  }
  if (a.rows >= 2) {
    tile<2, VECTORS>(a, b, b_down, c, c_down, c_right);
    a.rows -= 2, a.data += 2 * a.down, c += 2 * c_down;
  }
  if (a.rows == 1) tile<1, VECTORS>(a, b, b_down, c, c_down, c_right);
}

// B's columns are a multiple of WIDTH.
void product(const Matrix& a, Matrix b, float* c, int64_t c_down, int64_t c_right) {
  static thread_local std::vector<float> packed;
  if (b.right != 1) {
    packed.resize(b.rows * b.columns);
    for (int64_t n = 0; n < b.columns; ++n)
      for (int64_t k = 0; k < b.rows; ++k) packed[k * b.columns + n] = b.data[k * b.down + n * b.right];
    b.data = packed.data(), b.down = b.columns;
  }
  int64_t n = 0;
  for (; n + 4 * WIDTH <= b.columns; n += 4 * WIDTH) strip<4>(a, b.data + n, b.down, c + n * c_right, c_down, c_right);
  for (; n < b.columns; n += WIDTH) strip<1>(a, b.data + n, b.down, c + n * c_right, c_down, c_right);
}

Matrix seen(AtenTensorHandle tensor) {
  void* data;
  int64_t *sizes, *strides;
  aoti_torch_get_data_ptr(tensor, &data);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  return {static_cast<const float*>(data), sizes[0], sizes[1], strides[0], strides[1]};
}

}  // namespace

// [M, K] x [K, N] -> [M, N], contiguous. N is a multiple of 16; or M is, and the columns of A are contiguous.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_product(
    AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle* result) {
  const Matrix a = seen(left), b = seen(right);
  const int64_t sizes[] = {a.rows, b.columns}, strides[] = {b.columns, 1};
  AOTITorchError error = aoti_torch_empty_strided(
      2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, result);
  if (error != AOTI_TORCH_SUCCESS) return error;
  void* data;
  aoti_torch_get_data_ptr(*result, &data);
  float* c = static_cast<float*>(data);
  if (b.columns % WIDTH == 0)
    product(a, b, c, b.columns, 1);
  else
    product(b.transposed(), a.transposed(), c, 1, b.columns);
  return AOTI_TORCH_SUCCESS;
}
