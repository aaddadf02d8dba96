// The model with its tokeniser: text in, label and probability out.

package ai.qexport.sample

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.res.AssetManager
import android.os.Build
import org.json.JSONObject
import java.nio.LongBuffer
import kotlin.math.exp

/** `probability` is null for a regression model, whose number is `score`. */
class Answer(val label: String, val probability: Double?, val score: Float)

/** Reads the assets once; `classify` may be called from any thread but not from the main one. */
class Classifier(private val assets: AssetManager, threads: Int = 2) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val about = JSONObject(text("preprocessing.json"))
    private val labels = about.getJSONArray("labels").let { names -> List(names.length()) { names.getString(it) } }
    private val inputs = about.getJSONArray("inputs").let { names -> List(names.length()) { names.getString(it) } }
    private val tokenizer = if (about.isNull("tokenizer")) null else wordPiece(about.getJSONObject("tokenizer"))
    private val session = open(threads)

    /** The answer for a text or a pair. Where the model's tokenizer is not WordPiece, call `classifyIds`. */
    fun classify(text: String, pair: String? = null): Answer {
        val words = checkNotNull(tokenizer) { "this model's tokenizer is not WordPiece; call classifyIds" }
        return run(words.encode(text, pair))
    }

    /** The answer for token ids that were made elsewhere. */
    fun classifyIds(ids: LongArray): Answer = run(Encoded(ids, LongArray(ids.size)))

    override fun close() = session.close()

    private fun run(encoded: Encoded): Answer {
        val shape = longArrayOf(1, encoded.ids.size.toLong())
        val rows = mapOf(
            "input_ids" to encoded.ids,
            "attention_mask" to LongArray(encoded.ids.size) { 1L },
            "token_type_ids" to encoded.types
        )
        val feeds = inputs.associateWith {
            OnnxTensor.createTensor(environment, LongBuffer.wrap(rows.getValue(it)), shape)
        }
        try {
            session.run(feeds).use { result ->
                val buffer = (result.get(0) as OnnxTensor).floatBuffer
                return answer(FloatArray(buffer.remaining()) { buffer.get(it) })
            }
        } finally {
            feeds.values.forEach { it.close() }
        }
    }

    private fun answer(logits: FloatArray): Answer {
        if (about.getString("kind") == "regression") return Answer("score", null, logits[0])
        var best = 0
        for (index in logits.indices) if (logits[index] > logits[best]) best = index
        var sum = 0.0
        for (value in logits) sum += exp((value - logits[best]).toDouble())
        return Answer(labels[best], 1 / sum, logits[best])
    }

    private fun open(threads: Int): OrtSession {
        val options = OrtSession.SessionOptions()
        options.setIntraOpNumThreads(threads)
        // The kernel library is built for 64-bit Arm; elsewhere (an emulator) the file runs without it.
        if (Build.SUPPORTED_ABIS.first() == "arm64-v8a" && hasKernels()) {
            options.registerCustomOpLibrary(KERNELS)
        }
        return options.use { environment.createSession(bytes("model.onnx"), it) }
    }

    private fun hasKernels() = try {
        System.loadLibrary("qexport_kernels")
        true
    } catch (error: UnsatisfiedLinkError) {
        false
    }

    private fun wordPiece(json: JSONObject): WordPiece {
        val special = json.getJSONObject("special_tokens")
        val names = special.keys().asSequence().toList()
        val settings = Settings(
            lowercase = json.getBoolean("lowercase"),
            stripAccents = json.getBoolean("strip_accents"),
            cleanText = json.getBoolean("clean_text"),
            chineseChars = json.getBoolean("chinese_chars"),
            cls = json.getInt("cls"),
            sep = json.getInt("sep"),
            unk = json.getInt("unk"),
            maxLength = json.getInt("max_length"),
            maxChars = json.getInt("max_chars"),
            prefix = json.getString("prefix"),
            specialTokens = names.associateWith { special.getInt(it) }
        )
        return WordPiece(settings, text("vocab.txt"), text("unicode.txt"))
    }

    private fun bytes(name: String): ByteArray = assets.open(name).use { it.readBytes() }

    private fun text(name: String): String = String(bytes(name), Charsets.UTF_8)

    private companion object {
        const val KERNELS = "libqexport_kernels.so" // of lib/, which the Gradle file takes as native libraries
    }
}
