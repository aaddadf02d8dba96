// Just enough of this package's API to type-check the sample.

package ai.onnxruntime
import java.nio.*
open class OnnxValue : AutoCloseable { override fun close() {} }
class OnnxTensor : OnnxValue() { val floatBuffer: FloatBuffer get() = TODO()
    companion object { @JvmStatic fun createTensor(e: OrtEnvironment, b: LongBuffer, s: LongArray): OnnxTensor = TODO() } }
class OrtEnvironment { fun createSession(b: ByteArray, o: OrtSession.SessionOptions): OrtSession = TODO()
    companion object { @JvmStatic fun getEnvironment(): OrtEnvironment = TODO() } }
class OrtSession : AutoCloseable { override fun close() {}
  fun run(m: Map<String, OnnxTensor>): Result = TODO()
  class Result : AutoCloseable { override fun close() {}
    fun get(i: Int): OnnxValue = TODO() }
  class SessionOptions : AutoCloseable { override fun close() {}
    fun setIntraOpNumThreads(n: Int) {}
    fun registerCustomOpLibrary(p: String) {} } }
